"""The decoding stage of the embedding job, and the rows that its stages exchange.

A row of the Ray data set has two columns. `item` is a pickled `PictureBatch`, `VideoOutcome` or `StageFailure`.
`values` is a flat uint8 array, read in place from shared memory: the pictures of a batch, later its embeddings. Nothing
here imports torch, which decoders do not need.
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
from prospect.vision.changes import decodes_otherwise
from prospect.vision.report import VideoOutcome, VideoSource
from prospect.vision.settings import DECODER_VERSION, Crop
from prospect.vision.video import sample_frames

StageRow = dict[str, Any]


@dataclass(frozen=True)
class PictureBatch:
    """Pictures, or embeddings, of consecutive frames of one video."""

    video_id: str
    index: int
    frames: int
    source_hash: str = ""
    """SHA-256 of the video file, only in its last batch: by then every picture was read."""
    again: bool = False
    """In the last batch: whether an earlier decoder's embedding of this very file is replaced."""


@dataclass(frozen=True)
class StageFailure:
    """An exception that stops the whole job."""

    error: Exception

    @classmethod
    def of(cls, error: Exception) -> "StageFailure":
        """Keep a user's mistake as it is; give anything else the worker's stack trace."""
        return cls(error if isinstance(error, ProspectError) else RuntimeError(traceback.format_exc()))


Item = PictureBatch | VideoOutcome | StageFailure


def to_row(item: Item, values: np.ndarray | None = None) -> StageRow:
    """Pack an item and an array of any type and shape into a row."""
    flat = np.empty(0, np.uint8) if values is None else np.ascontiguousarray(values).reshape(-1).view(np.uint8)
    return {"item": pickle.dumps(item), "values": flat}


def item_of(row: StageRow) -> Item:
    """Unpack a row's item."""
    return pickle.loads(row["item"])


@dataclass(frozen=True)
class DecodeVideo:
    """Turn a video's row into its batches of pictures, or into one outcome if it is finished or broken."""

    size: int
    """Side of the square pictures, pixels."""
    crop: Crop
    batch_size: int
    store_root: str
    fingerprint: str
    alike: frozenset[str] = frozenset()
    """Videos that are known to decode as they did with an earlier decoder."""

    def __call__(self, row: StageRow) -> Iterator[StageRow]:
        """Hold two batches of pictures at a time, whatever the video's length."""
        video = VideoSource(**row)
        try:
            yield from self._rows(video)
        except DataError as error:
            yield to_row(VideoOutcome(video.video_id, "quarantined", reason=str(error)))
        except Exception as error:
            yield to_row(StageFailure.of(error))

    def _rows(self, video: VideoSource) -> Iterator[StageRow]:
        try:
            source_hash = hash_source(video.path)
        except OSError as error:
            reason = error.strerror or str(error)
            raise DataError(f"video {video.path} cannot be read: {reason}") from error
        store = EmbeddingStore(self.store_root)
        again = False
        if store.has(video.video_id, source_hash, self.fingerprint):
            stored = store.stored(video.video_id)
            known = video.video_id in self.alike
            again = not known and decodes_otherwise(video.path, stored.decoder)
            if not again:
                alike = not known and stored.decoder < DECODER_VERSION
                yield to_row(VideoOutcome(video.video_id, "skipped", stored.num_frames, alike=alike))
                return
        index, held = 0, None
        for pictures in self.batches(video.path):
            if held is not None:
                yield to_row(PictureBatch(video.video_id, index, len(held)), held)
                index += 1
            held = pictures
        assert held is not None, "a video without a picture is broken"
        yield to_row(PictureBatch(video.video_id, index, len(held), source_hash, again), held)

    def batches(self, path: str) -> Iterator[np.ndarray]:
        """Yield the sampled pictures of a video, uint8 [up to batch_size, S, S, 3]."""
        batch, rows = np.empty((self.batch_size, self.size, self.size, 3), np.uint8), 0
        for picture in sample_frames(path, size=self.size, crop=self.crop):
            batch[rows] = picture
            rows += 1
            if rows == len(batch):
                yield batch
                batch, rows = np.empty_like(batch), 0
        if rows:
            yield batch[:rows]
