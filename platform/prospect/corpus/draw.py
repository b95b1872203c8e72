"""Writes the corpus: one MP4 a video and `dialogues.jsonl`, reproducible and resumable."""

import json
import math
import os
import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import BinaryIO

import av

from prospect.corpus.plan import DrawnVideo, plan_corpus, scene_at
from prospect.corpus.scene import Scene, draw_scene
from prospect.corpus.settings import CorpusSettings
from prospect.errors import ConfigError, DataError
from prospect.hashing import derived_seed, fingerprint

VISIBLE_BEFORE_S = 0.3
"""Seconds by which a change shows before its event's time, at most: inside the frame that decides the event
(docs/architecture.md#events-and-frames)."""

_DRAWING = 1
"""Version of the pictures: raised when equal settings give other pictures. Texts are always written again."""
_NUDGES = ((0, 0), (1, 0), (0, 1), (-1, 0), (0, -1))
_NUDGE_S = 0.1


def draw_corpus(settings: CorpusSettings, folder: Path, progress: Callable[[int, int], None] | None = None) -> Path:
    """Draw the missing videos of the corpus in `folder` and return `folder`.

    `folder/videos/<video_id>.mp4`, then `folder/dialogues.jsonl` (one `Dialogue` a line) when all videos
    are there. `folder/corpus.json` holds the settings and their fingerprint. Every file is written under a
    temporary name and renamed, so that every file there is whole.

    Args:
        settings: what to draw; equal settings give equal bytes of `dialogues.jsonl` and equal pictures.
        folder: created if absent.
        progress: called with (videos there, videos wanted) once at the start and after each video drawn.

    Raises:
        ConfigError: the settings cannot work, or `folder` holds a corpus of other settings.
    """
    videos = plan_corpus(settings)
    _write_or_check_card(folder, settings)
    (folder / "videos").mkdir(exist_ok=True)
    missing = [video for video in videos if not _video_path(folder, video).exists()]
    there = len(videos) - len(missing)
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # drawing, converting and coding let go of the interpreter's lock
        written = pool.map(lambda video: _write_video(video, settings, _video_path(folder, video)), missing)
        try:
            for drawn, _ in enumerate(chain([None], written)):
                if progress is not None:
                    progress(there + drawn, len(videos))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # where it is stopped, those that have begun are finished
    lines = "".join(video.dialogue.model_dump_json() + "\n" for video in videos)
    records = folder / "dialogues.jsonl"
    if not records.exists() or records.read_text(encoding="utf-8") != lines:  # the same pictures, described anew
        _write_text(records, lines)
    return folder


def _video_path(folder: Path, video: DrawnVideo) -> Path:
    return folder / "videos" / f"{video.dialogue.video_id}.mp4"


def _write_or_check_card(folder: Path, settings: CorpusSettings) -> None:
    """Write the corpus card into `folder`, or check that the card there has the same settings."""
    wanted = fingerprint({"drawing": _DRAWING, **settings.model_dump(mode="json")})
    card = folder / "corpus.json"
    if not card.exists():
        folder.mkdir(parents=True, exist_ok=True)
        content = {"fingerprint": wanted, "settings": settings.model_dump(mode="json")}
        return _write_text(card, json.dumps(content, indent=2) + "\n")
    try:
        found = json.loads(card.read_text())["fingerprint"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"corpus: {card} is not a corpus card ({error}); give another folder") from None
    if found != wanted:
        raise ConfigError(
            f"corpus: {folder} holds a corpus of other settings (fingerprint {found}, wanted {wanted}); "
            "give another folder or remove it",
            field="corpus",
        )


def _write_text(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def _write_video(video: DrawnVideo, settings: CorpusSettings, path: Path) -> None:
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.mp4")
    with temporary.open("wb") as file:
        encode_video(video, settings, file)
    temporary.replace(path)


def encode_video(video: DrawnVideo, settings: CorpusSettings, file: BinaryIO) -> None:
    """Draw a video into a file, as MP4."""
    with av.open(file, "w", format="mp4") as container:
        # One thread and no look-ahead: the bytes do not depend on the machine's cores.
        options = {"preset": "ultrafast", "crf": "16", "threads": "1"}
        stream = container.add_stream("libx264", rate=settings.source_fps, options=options)
        stream.width = stream.height = settings.image_size
        stream.pix_fmt = "yuv420p"
        stream.gop_size = settings.source_fps
        for index, frame in enumerate(_frames(video, settings)):
            frame.pts = index
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def _frames(video: DrawnVideo, settings: CorpusSettings) -> Iterator[av.VideoFrame]:
    """The source pictures in order; each distinct one is drawn and converted once."""
    rng = random.Random(derived_seed(video.seed, "hand"))

    @lru_cache(maxsize=64)
    def drawn(scene: Scene) -> av.VideoFrame:
        picture = draw_scene(scene, settings.image_size)
        return av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="yuv420p")

    ahead = math.floor(VISIBLE_BEFORE_S * settings.source_fps)
    held = max(1, round(_NUDGE_S * settings.source_fps))
    nudge = (0, 0)
    for index in range(round(video.script.duration * settings.source_fps)):
        if index % held == 0:
            nudge = rng.choice(_NUDGES)
        yield drawn(scene_at(video.script, (index + ahead) / settings.source_fps, nudge))
