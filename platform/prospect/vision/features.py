"""Import of ProAssist's released features into an embedding store, under their own fingerprint.

    features/ENCODER/VIDEO.arrow   one row a frame of the whole video, float16: `cls` [1, D], `2x2` [4, D],
                                   `3x3` [9, D]; Hugging Face's arrow stream

`ENCODER` is a model's name with `/` written as `___`, such as `google___siglip-so400m-patch14-384@-2`.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import pyarrow as pa

from prospect.data.embeddings import EmbeddingStore
from prospect.dialogue.timeline import FPS
from prospect.errors import DataError
from prospect.files import hash_source, open_filesystem
from prospect.hashing import fingerprint
from prospect.messages import first_line
from prospect.vision.report import EmbedReport, VideoOutcome, VideoSource
from prospect.vision.settings import DECODER_VERSION

COLUMNS = {1: ("cls",), 5: ("cls", "2x2"), 10: ("cls", "3x3")}
"""Columns that hold a frame's tokens, in order, by tokens a frame."""

_TOKENS = {"cls": 1, "2x2": 4, "3x3": 9}


def features_fingerprint(encoder: str, tokens: int) -> str:
    """Hash how the features were made: 2 fps from the start of each interval, centre crop, by this encoder."""
    made = {
        "encoder": encoder,
        "tokens_per_frame": tokens,
        "crop": "centre",
        "phase": "start-of-interval",
    }
    return fingerprint(made | {"fps": FPS, "origin": "imported"})


def import_features(
    videos: Sequence[VideoSource],
    encoder: str,
    tokens: int,
    store_root: str,
    *,
    dim: int | None = None,
    progress: Callable[[EmbedReport], None] = lambda report: None,
) -> EmbedReport:
    """Store the features of every readable file that the store lacks.

    Args:
        videos: each with the path or URL of its file of features.
        encoder: name of their folder; goes into the fingerprint.
        tokens: I, of `COLUMNS`.
        store_root: folder or URL.
        dim: D; None takes that of the first file.
        progress: called with the growing report after each video.

    Raises:
        FingerprintError: the store holds embeddings of another fingerprint.
    """
    began = time.monotonic()
    report = EmbedReport(videos, store_root, features_fingerprint(encoder, tokens))
    store = EmbeddingStore(store_root)
    if store.video_ids():
        store.require(report.fingerprint)
        dim = store.dim
    for video in videos:
        try:
            outcome, dim = _import(video, tokens, store, report.fingerprint, dim)
        except DataError as error:
            outcome = VideoOutcome(video.video_id, "quarantined", reason=str(error))
        report.outcomes.append(outcome)
        report.encoded, report.seconds = report.frames, time.monotonic() - began
        progress(report)
    store.note_alike([outcome.video_id for outcome in report.outcomes if outcome.alike], DECODER_VERSION)
    store.finish({video.video_id: video.path for video in videos}, report.quarantined)
    return report


def _import(
    video: VideoSource, tokens: int, store: EmbeddingStore, made: str, dim: int | None
) -> tuple[VideoOutcome, int]:
    try:
        source_hash = hash_source(video.path)
    except OSError as error:
        raise DataError(f"features {video.path} cannot be read: {error.strerror or error}") from error
    if store.has(video.video_id, source_hash, made):
        stored = store.stored(video.video_id)
        return VideoOutcome(
            video.video_id, "skipped", stored.num_frames, alike=stored.decoder < DECODER_VERSION
        ), store.dim
    frames = read_features(video.path, tokens)
    if dim is not None and frames.shape[2] != dim:
        raise DataError(f"features {video.path} have {frames.shape[2]} dimensions, but the store has {dim}")
    store.write(video.video_id, frames, fps=FPS, source_hash=source_hash, fingerprint=made, decoder=DECODER_VERSION)
    return VideoOutcome(video.video_id, "done", len(frames)), frames.shape[2]


def read_features(path: str, tokens: int) -> np.ndarray:
    """Read one `.arrow` file batch by batch as float16 [T, I, D].

    Raises:
        DataError: the file is not an Arrow stream or file, lacks a column, or has a row of another shape.
    """
    parts: list[np.ndarray] = []
    try:
        with _batches(path) as batches:
            for batch in batches:
                columns = [_vectors(batch, name, path) for name in COLUMNS[tokens]]
                parts.append(np.concatenate(columns, axis=1))
        return np.concatenate(parts)
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = first_line(error)
        raise DataError(f"features {path} cannot be read: {reason}") from error


@contextmanager
def _batches(path: str) -> Iterator[Iterator[pa.RecordBatch]]:
    """Open the record batches of an Arrow stream or file; a file begins with `ARROW1`."""
    filesystem, inside = open_filesystem(path)
    with filesystem.open_input_file(inside) as file:
        head = file.read(6)
        file.seek(0)
        if head == b"ARROW1":
            reader = pa.ipc.open_file(file)
            yield (reader.get_batch(number) for number in range(reader.num_record_batches))
        else:
            with pa.ipc.open_stream(file) as stream:
                yield iter(stream)


def _vectors(batch: pa.RecordBatch, name: str, path: str) -> np.ndarray:
    """Read one column as [rows, tokens, D], however deep its lists are nested."""
    if name not in batch.schema.names:
        raise DataError(f"features {path} lack the column {name!r}; their columns are {', '.join(batch.schema.names)}")
    column, rows, tokens = batch.column(name), batch.num_rows, _TOKENS[name]
    while isinstance(column, pa.ExtensionArray) or pa.types.is_nested(column.type):
        column = column.storage if isinstance(column, pa.ExtensionArray) else column.flatten()
    values = column.to_numpy(zero_copy_only=False)
    if not rows or column.null_count or values.size == 0 or values.size % (rows * tokens):
        raise DataError(
            f"features {path}: column {name!r} holds {values.size} values for {rows} frames of {tokens} tokens"
        )
    return values.reshape(rows, tokens, -1).astype(np.float16)
