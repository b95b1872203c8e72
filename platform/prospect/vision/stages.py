"""A video to batches of pictures: the decoding stage of the embedding job, and the rows that its stages pass on.

Nothing here imports torch, which a decoder would wait for and keep in memory for nothing. A row has two columns,
as Ray moves them: `item`, a pickled dataclass of below that says what the row is, and `values`, a flat uint8 array
that is read where it lies in shared memory: the pictures of a batch, then its embeddings.
"""

import pickle
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from prospect.data.embeddings import EmbeddingStore
from prospect.errors import DataError, ProspectError
from prospect.files import hash_source
from prospect.vision.report import Outcome, VideoSource
from prospect.vision.settings import Crop
from prospect.vision.video import sample_frames

Row = dict[str, Any]


@dataclass(frozen=True)
class Batch:
    """Pictures, or embeddings, of consecutive frames of one video."""

    video_id: str
    index: int
    frames: int
    source_hash: str = ""
    """Of the video's file, in its last batch: every picture of it was read."""


@dataclass(frozen=True)
class Failure:
    """An exception that has to stop the whole job."""

    error: Exception

    @classmethod
    def of(cls, error: Exception) -> "Failure":
        """A user's mistake as it is; anything else with the stack trace that the worker had."""
        return cls(error if isinstance(error, ProspectError) else RuntimeError(traceback.format_exc()))


Item = Batch | Outcome | Failure


def to_row(item: Item, values: np.ndarray | None = None) -> Row:
    """A row of any item; `values` of any type and shape."""
    flat = np.empty(0, np.uint8) if values is None else np.ascontiguousarray(values).reshape(-1).view(np.uint8)
    return {"item": pickle.dumps(item), "values": flat}


def item_of(row: Row) -> Item:
    """What a row is about."""
    return pickle.loads(row["item"])


@dataclass(frozen=True)
class DecodeVideo:
    """A video's row -> its batches of pictures; or one outcome, if it is finished or broken."""

    size: int
    """Side of the square pictures, pixels."""
    crop: Crop
    batch_size: int
    store_root: str
    fingerprint: str

    def __call__(self, row: Row) -> Iterator[Row]:
        """Holds two batches of pictures at a time, whatever the video's length."""
        video = VideoSource(**row)
        try:
            yield from self._rows(video)
        except DataError as error:
            yield to_row(Outcome(video.video_id, "quarantined", reason=str(error)))
        except Exception as error:
            yield to_row(Failure.of(error))

    def _rows(self, video: VideoSource) -> Iterator[Row]:
        try:
            source_hash = hash_source(video.path)
        except OSError as error:
            reason = error.strerror or str(error)
            raise DataError(f"video {video.path} cannot be read: {reason}") from error
        store = EmbeddingStore(self.store_root)
        if store.has(video.video_id, source_hash, self.fingerprint):
            yield to_row(Outcome(video.video_id, "skipped", store.num_frames(video.video_id)))
            return
        index, held = 0, None
        for pictures in self.batches(video.path):
            if held is not None:
                yield to_row(Batch(video.video_id, index, len(held)), held)
                index += 1
            held = pictures
        assert held is not None, "a video without a picture is broken"
        yield to_row(Batch(video.video_id, index, len(held), source_hash), held)

    def batches(self, path: str) -> Iterator[np.ndarray]:
        """The sampled pictures of a video, uint8 [up to batch_size, S, S, 3]."""
        batch, rows = np.empty((self.batch_size, self.size, self.size, 3), np.uint8), 0
        for picture in sample_frames(path, size=self.size, crop=self.crop):
            batch[rows] = picture
            rows += 1
            if rows == len(batch):
                yield batch
                batch, rows = np.empty_like(batch), 0
        if rows:
            yield batch[:rows]
