"""Saved predictions of an evaluation: gzipped JSON lines from which it is scored again without the model.

The first line is a header with the evaluation's lineage and the model's manifest. Each further line is one dialogue:
its record, its number of frames, the file of its video, and by system the decisions and refreshes.
"""

import gzip
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter

from prospect.dialogue.schema import Dialogue
from prospect.dialogue.timeline import place
from prospect.errors import DataError
from prospect.evaluation.lineage import Lineage
from prospect.evaluation.records import VideoDecisions
from prospect.evaluation.streamed import Stream
from prospect.files import write_bytes
from prospect.messages import first_line

SUFFIX = ".predictions.jsonl.gz"
"""Replaces the `.json` of the result that the file lies beside."""


@dataclass(frozen=True)
class _Header:
    """The first line."""

    lineage: Lineage
    manifest: dict[str, Any]
    format: Literal[1] = 1


@dataclass(frozen=True)
class _Row:
    """Each further line."""

    dialogue: Dialogue
    num_frames: int
    video: str | None
    systems: dict[str, Stream]


@dataclass(frozen=True)
class Predictions:
    """What every system of an evaluation decided, and what the evaluation was of."""

    lineage: Lineage
    manifest: Mapping[str, Any]
    """Of the model."""
    systems: Mapping[str, Sequence[VideoDecisions]]
    """By the system's name, each with the same dialogues in the same order."""
    videos: Mapping[str, str]
    """Path or URL of the video file by video id, where one was found."""

    @property
    def datasets(self) -> set[str]:
        """Data sets of the dialogues."""
        return {video.dialogue.dataset for videos in self.systems.values() for video in videos}


def predictions_file(result: Path) -> Path:
    """Where the predictions of a result lie."""
    return result.with_name(result.name.removesuffix(".json") + SUFFIX)


def save_predictions(file: Path, predictions: Predictions) -> None:
    """Write the file atomically; equal predictions give equal bytes."""
    packed = io.BytesIO()
    with gzip.GzipFile(fileobj=packed, mode="wb", compresslevel=6, mtime=0) as out:
        for line in _lines(predictions):
            out.write(line + b"\n")
    write_bytes(file, packed.getvalue())


def _lines(predictions: Predictions) -> Iterator[bytes]:
    header, row = _adapters()
    yield header.dump_json(_Header(predictions.lineage, dict(predictions.manifest)))
    for together in zip(*predictions.systems.values(), strict=True):
        dialogue, timeline = together[0].dialogue, together[0].timeline
        streams = {name: Stream.of(video) for name, video in zip(predictions.systems, together, strict=True)}
        video = predictions.videos.get(dialogue.video_id)
        yield row.dump_json(_Row(dialogue, timeline.num_frames, video, streams), exclude_defaults=True)


def load_predictions(file: Path) -> Predictions:
    """Read what `save_predictions` wrote.

    Raises:
        DataError: the file is missing, or is not such a file.
    """
    header, row = _adapters()
    systems: dict[str, list[VideoDecisions]] = {}
    videos = {}
    try:
        with gzip.open(file) as lines:
            about = header.validate_json(next(lines))
            for line in lines:
                one = row.validate_json(line)
                placed = one.dialogue, place(one.dialogue, one.num_frames)
                if one.video:
                    videos[one.dialogue.video_id] = one.video
                for name, stream in one.systems.items():
                    systems.setdefault(name, []).append(stream.beside(placed))
    except FileNotFoundError:
        raise DataError(f"predictions {file}: the file does not exist; give a {SUFFIX} of an evaluation") from None
    except (OSError, EOFError, StopIteration, ValueError) as error:  # pydantic's errors are ValueErrors
        raise DataError(f"predictions {file}: unreadable ({first_line(error)}); evaluate the model again") from error
    return Predictions(about.lineage, about.manifest, systems, videos)


@cache
def _adapters() -> tuple[TypeAdapter[_Header], TypeAdapter[_Row]]:
    return TypeAdapter(_Header), TypeAdapter(_Row)
