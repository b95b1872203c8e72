"""One HTML page on one video's labels: pictures, steps, events, turns and clips along the time axis.

The page holds everything that it shows: it opens from disk, without a network.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args
from urllib.parse import quote

import jinja2
from pyarrow import fs

from prospect.data.cuts import make_clips
from prospect.data.prepare import training_texts
from prospect.data.settings import ClipSettings
from prospect.data.sources import Corpus, QuarantinedRecord, place_all
from prospect.data.sources.placement import total_frames
from prospect.dialogue.prompt import ContextSettings
from prospect.dialogue.schema import Dialogue, Role
from prospect.dialogue.sequence import SequenceBuilder
from prospect.dialogue.timeline import FPS, Timeline
from prospect.dialogue.vocabulary import Vocabulary
from prospect.errors import ConfigError, DataError
from prospect.files import open_filesystem, write_file
from prospect.messages import unknown
from prospect.model.settings import TinyGeometry
from prospect.model.tokenizer import fit_tokenizer
from prospect.reports.preview.thumbnails import Thumbnail, pictures_of, thumbnails
from prospect.reports.preview.tracks import (
    OVERVIEW,
    Box,
    StepRow,
    TrackMark,
    annotation_boxes,
    axis_ticks,
    clip_boxes,
    clock,
    events_of,
    max_zoom,
    step_rows,
    turn_boxes,
)

MAX_THUMBNAILS = 48

MAX_EVENT_PICTURES = 400
"""Frames with events that have a picture of their own; of more, as many are chosen evenly."""


@dataclass(frozen=True)
class DialogueTracks:
    """Content of the page on one dialogue."""

    dialogue: Dialogue
    events: list[TrackMark]
    spoken: dict[str, list[tuple[int, Box]]]
    """(index into `events`, box) by role."""
    steps: list[StepRow]
    annotations: list[list[Box]]
    """Annotation lines by depth."""
    clips: list[tuple[Box, float]]
    problems: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        parts = (self.dialogue.dialogue_id, self.dialogue.user_type, self.dialogue.split)
        return ", ".join(filter(None, parts))

    @property
    def num_refused(self) -> int:
        return sum(bool(event.reason) for event in self.events)


@dataclass(frozen=True)
class Page:
    """Content of the page."""

    video_id: str
    num_frames: int
    source: str
    """Source of the dialogues."""
    pictures: list[Thumbnail]
    no_pictures: str
    """Reason why the page has no pictures."""
    tracks: list[DialogueTracks]
    cutting: str
    problems: list[str]
    event_pictures: dict[int, str] = field(default_factory=dict)
    """Picture by frame, of frames with events."""

    @property
    def duration(self) -> float:
        return self.num_frames / FPS

    @property
    def ticks(self) -> list[tuple[int, float]]:
        return axis_ticks(self.duration)

    @property
    def max_zoom(self) -> int:
        return max_zoom(self.num_frames)


def preview_video(
    video_id: str,
    corpus: Corpus,
    root: str,
    frames_of: Callable[[str], int | None],
    context: ContextSettings | None = None,
    clips: ClipSettings | None = None,
) -> str:
    """Writes the page of one video of `corpus`, with the labels of the labelling job where it ran.

    Args:
        video_id: the video.
        corpus: the source.
        root: absolute path or URL of the storage root.
        frames_of: T of a video that has an embedding, else None.
        context: how long clips may be.
        clips: how dialogues are cut.

    Returns:
        Where the page lies: `<root>/labels/preview/<video id, percent-encoded>.html`.

    Raises:
        ConfigError: no dialogue is about such a video.
    """
    found = [dialogue for dialogue in corpus.dialogues if dialogue.video_id == video_id]
    if not found:
        known = {dialogue.video_id for dialogue in corpus.dialogues}
        raise ConfigError(unknown("video", video_id, known, of="preview", most=5), field="preview")
    labelled = _labelled(found, root)
    return write_preview(
        video_id,
        labelled or found,
        corpus.videos.get(video_id),
        root,
        num_frames=frames_of(video_id),
        context=context,
        clips=clips,
        quarantined=[
            record
            for record in (_reported(root) if labelled else corpus.quarantined)
            if f"{record.id}/".startswith(f"{video_id}/")
        ],
        source="the labelling job's dialogues.jsonl" if labelled else "the source; jobs/label.py has not labelled it",
    )


def write_preview(
    video_id: str,
    dialogues: Sequence[Dialogue],
    video: str | Path | None,
    root: str,
    *,
    num_frames: int | None = None,
    context: ContextSettings | None = None,
    clips: ClipSettings | None = None,
    quarantined: Sequence[QuarantinedRecord] = (),
    source: str = "",
) -> str:
    """Writes the page of one video; `preview_video` says where.

    Args:
        video_id: the video.
        dialogues: all about this video, at least one.
        video: path or URL of its file; None or unreadable: a page without pictures that says so.
        root: absolute path or URL of the storage root.
        num_frames: T where it is known; None: as the file says, else as the dialogues say.
        context: how long clips may be.
        clips: how dialogues are cut.
        quarantined: records of this video that were left out.
        source: where the dialogues were read, in words.
    """
    pictures: list[Thumbnail] = []
    no_pictures, counted = "no video file was found", None
    if video is not None:
        try:
            counted, pictures = thumbnails(video, MAX_THUMBNAILS)
            no_pictures = ""
        except DataError as error:
            no_pictures = str(error)
    total = num_frames or counted or max(map(total_frames, dialogues))
    context = context or ContextSettings()
    tracks = _tracks(dialogues, total, context, clips or ClipSettings())
    problems = [f"Quarantined: {record}" for record in quarantined]
    if counted is not None and counted != total:
        problems.append(f"The video file has {counted} frames, its embedding {total}: one of them is another video's.")
    shown = {} if video is None or no_pictures else pictures_of(video, _event_frames(tracks))
    page = Page(video_id, total, source, pictures, no_pictures, tracks, _cutting(context), problems, shown)
    filesystem, base = open_filesystem(root)
    name = f"labels/preview/{quote(video_id, safe='')}.html"
    write_file(filesystem, f"{base}/{name}", render(page).encode())
    return f"{root}/{name}"


def render(page: Page) -> str:
    """The page as HTML."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("prospect.reports.preview"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"clock": clock, "percent": lambda share: f"{100 * share:.4f}%"}
    return environment.get_template("preview.html").render(page=page, fps=FPS, overview=OVERVIEW)


def _labelled(found: Sequence[Dialogue], root: str) -> list[Dialogue]:
    """The dialogues as the labelling job wrote them, with the source's annotation lines; empty before it ran."""
    written = _read(root, "dialogues.jsonl")
    video_id, lines_of = found[0].video_id, {dialogue.dialogue_id: dialogue.annotations for dialogue in found}
    name = json.dumps(video_id, ensure_ascii=False)  # a whole corpus is not parsed for one video
    lines = (line for line in written.split("\n") if name in line)  # not splitlines: texts may hold other breaks
    dialogues = (Dialogue.model_validate_json(line) for line in lines)
    return [
        dialogue.model_copy(update={"annotations": lines_of.get(dialogue.dialogue_id, ())})
        for dialogue in dialogues
        if dialogue.video_id == video_id
    ]


def _reported(root: str) -> list[QuarantinedRecord]:
    """Records that the labelling job left out."""
    written = _read(root, "report.json")
    return [QuarantinedRecord(**record) for record in json.loads(written)["quarantined"]] if written else []


def _read(root: str, name: str) -> str:
    """Text of a file of the labelling job; empty where it is missing."""
    filesystem, base = open_filesystem(root)
    path = f"{base}/labels/{name}"
    if filesystem.get_file_info(path).type != fs.FileType.File:
        return ""
    with filesystem.open_input_stream(path) as file:
        return file.read().decode()


def _tracks(
    dialogues: Sequence[Dialogue], total: int, context: ContextSettings, clips: ClipSettings
) -> list[DialogueTracks]:
    texts = training_texts(dialogues)
    builder = SequenceBuilder(Vocabulary(fit_tokenizer(texts, TinyGeometry().vocab_size)), context, tokens_per_frame=1)
    placed, _ = place_all(dialogues, lambda _: total)  # what has no place is among the events
    return [_track(dialogue, timeline, builder, clips) for dialogue, timeline in placed]


def _event_frames(tracks: Sequence[DialogueTracks]) -> list[int]:
    frames = sorted({event.frame for track in tracks for event in track.events if event.frame is not None})
    return frames[:: max(1, math.ceil(len(frames) / MAX_EVENT_PICTURES))]


def _track(dialogue: Dialogue, timeline: Timeline, builder: SequenceBuilder, clips: ClipSettings) -> DialogueTracks:
    total = timeline.num_frames
    events = events_of(dialogue, timeline)
    made, uncut = make_clips([(dialogue, timeline)], builder, clips)
    return DialogueTracks(
        dialogue,
        events,
        {role: turn_boxes(events, role, total) for role in get_args(Role)},
        step_rows(dialogue, events, total),
        [annotation_boxes(dialogue.annotations, depth, total / FPS) for depth in (0, 1)],
        clip_boxes(made, total),
        [f"not cut into clips: {record.reason}" for record in uncut],
    )


def _cutting(context: ContextSettings) -> str:
    return (
        f"Clips are cut at context.max_seq_len={context.max_seq_len}, one token a frame, with a tokenizer of "
        f"{TinyGeometry().vocab_size} tokens fitted to this video's dialogues; a model's own tokenizer cuts elsewhere."
    )
