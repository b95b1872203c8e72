"""Decisions of streamed dialogues on disk: an evaluation that was killed goes on, one that is repeated streams nothing.

A key holds everything that a decision depends on: weights, code, settings, frames and dialogues.
"""

import functools
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

import prospect
from prospect.data.embeddings import FIRST_DECODER, EmbeddingStore, StoredVideo
from prospect.dialogue.prompt import ContextSettings
from prospect.errors import DataError
from prospect.evaluation.records import Placed, VideoDecisions, View, scored_frames
from prospect.files import write_text
from prospect.hashing import fingerprint, hash_file
from prospect.streaming.settings import StreamingSettings
from prospect.streaming.types import Decision

SESSIONS_PER_GROUP = 8
"""Dialogues that one engine streams together; a group is the unit that workers are handed."""

Report = Callable[[str], None]
Row = dict[str, str]
"""A group on its way to a worker: `view`, `dialogues` and `key`; or back: `key`, `decisions` and `error`."""

DECISIONS = TypeAdapter(list[Decision])


def cached_decisions(
    stream: Callable[[list[Row]], Iterable[Row]],
    folder: Path,
    cache: Path,
    placed: Sequence[Placed],
    store: EmbeddingStore,
    context: ContextSettings,
    streaming: StreamingSettings,
    report: Report,
    views: Sequence[View],
) -> dict[View, list[VideoDecisions]]:
    """Decisions by what the model in `folder` is shown.

    What the same model and code streamed before with the same settings is not streamed again: `cache` has it.

    Args:
        stream: decides the dialogues of rows that are not there.
        folder: the model's.
        cache: of the storage root.
        placed: the dialogues.
        store: their frames.
        context: how contexts are made.
        streaming: the engine's settings.
        report: takes one line of progress at a time.
        views: what the model is shown.

    Raises:
        DataError: a dialogue cannot be streamed.
    """
    settings = [each.model_dump(mode="json") for each in (context, streaming)]
    same = [_weights_hash(folder), _code_hash(), *settings, store.fingerprint]
    groups = [
        _Group.of(view, placed[start : start + SESSIONS_PER_GROUP], same, store)
        for view in views
        for start in range(0, len(placed), SESSIONS_PER_GROUP)
    ]
    finished = _Finished(cache / "decisions", len(groups), report)
    missing = [group.row for group in groups if not finished.has(group.row["key"])]
    if missing:
        for row in stream(missing):
            if row["error"]:
                raise DataError(f"evaluation: a held-out dialogue cannot be streamed: {row['error']}")
            finished.add(row["key"], row["decisions"])
    found: dict[View, list[VideoDecisions]] = {view: [] for view in views}
    for group in groups:
        decided = [DECISIONS.validate_json(text) for text in finished.get(group.row["key"])]
        found[group.view] += [
            VideoDecisions(dialogue, timeline, decisions, scored_frames(dialogue, timeline).start)
            for (dialogue, timeline), decisions in zip(group.placed, decided, strict=True)
        ]
    return found


@dataclass(frozen=True)
class _Group:
    """Dialogues that one engine streams together, and the row that carries them through Ray Data."""

    view: View
    placed: Sequence[Placed]
    row: dict[str, str]

    @classmethod
    def of(cls, view: View, placed: Sequence[Placed], same: list[Any], store: EmbeddingStore) -> "_Group":
        row = {"view": view, "dialogues": json.dumps([dialogue.model_dump_json() for dialogue, _ in placed])}
        sources = [_source(store.stored(dialogue.video_id)) for dialogue, _ in placed]
        return cls(view, placed, {**row, "key": fingerprint([*same, row, sources])})


def _source(video: StoredVideo) -> str:
    """Identify what a video's embedding was made from; the first decoder's has no mark, as in earlier caches."""
    mark = "" if video.decoder == FIRST_DECODER else f"@{video.decoder}"
    return video.source_hash + mark


class _Finished:
    """Decisions on disk, a file a group, so that an evaluation that was killed goes on where it was."""

    def __init__(self, folder: Path, total: int, report: Report) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._total, self._report, self._done = folder, total, report, 0

    def has(self, key: str) -> bool:
        found = (self._folder / f"{key}.json").is_file()
        self._done += found
        return found

    def add(self, key: str, decisions: str) -> None:
        write_text(self._folder / f"{key}.json", decisions)
        self._done += 1
        self._report(f"eval   {self._done}/{self._total} groups of up to {SESSIONS_PER_GROUP} sessions streamed")

    def get(self, key: str) -> list[str]:
        return json.loads((self._folder / f"{key}.json").read_text())


def _weights_hash(folder: Path) -> str:
    weights = [hash_file(file) for file in sorted(folder.glob("*.safetensors"))]
    return fingerprint([*weights, (folder / "config.json").read_text()])


@functools.cache
def _code_hash() -> str:
    """Of what decides, so that another version's decisions are not taken for this one's."""
    package = Path(prospect.__file__).parent
    files = [file for part in ("dialogue", "model", "streaming") for file in sorted((package / part).rglob("*.py"))]
    return fingerprint([hash_file(file) for file in [*files, package / "evaluation" / "stream.py"]])
