"""Cache of a model's streamed decisions on disk, so that a killed or repeated evaluation streams only what is missing.

A key hashes everything that a decision depends on: weights, code, settings, frames and dialogues.
"""

import functools
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import prospect
from prospect.data.embeddings import FIRST_DECODER, EmbeddingStore, StoredVideo
from prospect.dialogue.prompt import ContextSettings
from prospect.errors import DataError
from prospect.evaluation.records import Placed, Variant, VideoDecisions
from prospect.evaluation.streamed import Stream
from prospect.files import write_text
from prospect.hashing import fingerprint, hash_file
from prospect.streaming.settings import StreamingSettings

SESSIONS_PER_GROUP = 8
"""Dialogues that one engine streams at once; a worker gets one such group at a time."""

DECIDING_FILES = ("group_streamer.py", "records.py", "stream.py", "streamed.py")
"""Modules of this package on which decisions depend, as on all of `dialogue`, `model` and `streaming`."""

GroupRow = dict[str, str]
"""A group sent to a worker (`view`, `speak`, `update`, `dialogues`, `key`), or its result (`key`, `decisions`,
`error`, `engine`)."""


@dataclass(frozen=True)
class StreamedModel:
    """A model folder, and the frames and settings with which an evaluation streams it."""

    folder: Path
    cache: Path
    """`cache` of the storage root: earlier decisions, and base models converted from packages."""
    store: str
    """Root of the embedding store."""
    context: ContextSettings
    streaming: StreamingSettings


def cached_decisions(
    model: StreamedModel,
    placed: Sequence[Placed],
    variants: Sequence[Variant],
    stream: Callable[[list[GroupRow]], Iterable[GroupRow]],
    report: Callable[[str], None],
) -> dict[Variant, list[VideoDecisions]]:
    """The model's decisions on dialogues by variant, streaming only those that are not in the cache.

    Args:
        model: what is streamed.
        placed: the dialogues.
        variants: what the model is shown, and at which thresholds it acts.
        stream: decides the dialogues of missing groups.
        report: takes one line of progress at a time.

    Raises:
        DataError: a dialogue cannot be streamed.
    """
    store = EmbeddingStore(model.store)
    settings = [model.context.model_dump(mode="json"), model.streaming.decisive()]
    same = [hash_model(model.folder), _code_hash(), *settings, store.fingerprint]
    groups = [
        _DialogueGroup.of(variant, placed[start : start + SESSIONS_PER_GROUP], same, store)
        for variant in variants
        for start in range(0, len(placed), SESSIONS_PER_GROUP)
    ]
    finished = _DecisionFiles(model.cache / "decisions", len(groups), report)
    missing = [group.row for group in groups if not finished.has(group.row["key"])]
    if missing:
        for row in stream(missing):
            if row["error"]:
                raise DataError(f"evaluation: a held-out dialogue cannot be streamed: {row['error']}")
            finished.add(row["key"], row["decisions"])
    found: dict[Variant, list[VideoDecisions]] = {variant: [] for variant in variants}
    for group in groups:
        streams = map(Stream.from_json, finished.get(group.row["key"]))
        found[group.variant] += [one.beside(pair) for pair, one in zip(group.placed, streams, strict=True)]
    return found


@dataclass(frozen=True)
class _DialogueGroup:
    """Dialogues that one engine streams at once, and the row that carries them to a worker."""

    variant: Variant
    placed: Sequence[Placed]
    row: dict[str, str]

    @classmethod
    def of(cls, variant: Variant, placed: Sequence[Placed], same: list[Any], store: EmbeddingStore) -> "_DialogueGroup":
        dialogues = json.dumps([dialogue.model_dump_json() for dialogue, _ in placed])
        thresholds = {"speak": variant.speak, "update": variant.update}
        given = {name: "" if threshold is None else repr(threshold) for name, threshold in thresholds.items()}
        row = {"view": variant.view, **given, "dialogues": dialogues}
        sources = [_source(store.stored(dialogue.video_id)) for dialogue, _ in placed]
        return cls(variant, placed, {**row, "key": fingerprint([*same, row, sources])})


def _source(video: StoredVideo) -> str:
    """Identify what a video's embedding was made from; the first decoder's has no mark, as in earlier caches."""
    mark = "" if video.decoder == FIRST_DECODER else f"@{video.decoder}"
    return video.source_hash + mark


class _DecisionFiles:
    """Decisions on disk, one file for each group."""

    def __init__(self, folder: Path, total: int, report: Callable[[str], None]) -> None:
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


def hash_model(folder: Path) -> str:
    """Changes with the weights and the configuration of a model folder, its thresholds included."""
    weights = [hash_file(file) for file in sorted(folder.glob("*.safetensors"))]
    return fingerprint([*weights, (folder / "config.json").read_text()])


@functools.cache
def _code_hash() -> str:
    """Hash of the code that decides, so that the cache of another version is not used."""
    package = Path(prospect.__file__).parent
    files = [file for part in ("dialogue", "model", "streaming") for file in sorted((package / part).rglob("*.py"))]
    files += [package / "evaluation" / name for name in DECIDING_FILES]
    return fingerprint([hash_file(file) for file in files])
