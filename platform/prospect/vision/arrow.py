"""ProAssist's frames files: pictures that were sampled already, one JPEG a row of an Arrow table."""

import base64
import binascii
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import numpy as np
import pyarrow as pa
from pyarrow import fs, ipc

from prospect.dialogue.timeline import FPS
from prospect.errors import DataError
from prospect.files import open_filesystem
from prospect.messages import first_line
from prospect.vision.pictures import PNG_SIGNATURE, decode_picture, resize_picture
from prospect.vision.settings import Crop

FRAMES_FILE_PHASE: Final = "start-of-interval"
"""For the fingerprint, in place of `video.SAMPLING_PHASE`: row k was taken at k/fps, not just before (k+1)/fps."""

_COLUMN = "frame"
_PNG_BASE64 = base64.b64encode(PNG_SIGNATURE[:6]).decode()


def is_frames_file(path: str) -> bool:
    """Whether a path names a frames file (`.arrow`)."""
    return path.endswith(".arrow")


def measure(path: str, fps: float) -> tuple[int, tuple[int, int]]:
    """Count the rows; read height and width of the first picture.

    Raises:
        DataError: as `read_pictures`, but only the first row is decoded.
    """
    _check_rate(path, fps)
    rows, shape = 0, (0, 0)
    with _batches(path) as batches:
        for batch in batches:
            if not rows and len(batch):
                height, width, _ = _decode(path, 0, batch.column(_COLUMN)[0]).shape
                shape = height, width
            rows += len(batch)
    if not rows:
        raise DataError(f"frames file {path} holds no picture")
    return rows, shape


def read_pictures(path: str, fps: float, size: int, crop: Crop) -> Iterator[np.ndarray]:
    """Yield each row's picture, uint8 [size, size, 3]; holds one record batch at a time.

    Raises:
        DataError: missing, truncated, without the text column, a rate other than 2 a second, or a row without a JPEG.
    """
    _check_rate(path, fps)
    row = 0
    with _batches(path) as batches:
        for batch in batches:
            for value in batch.column(_COLUMN):
                yield resize_picture(_decode(path, row, value), size, crop)
                row += 1
    if not row:
        raise DataError(f"frames file {path} holds no picture")


def holds_png(path: str) -> bool:
    """Whether any row is a PNG, which unlike a JPEG can be transparent or of 16 bits.

    Raises:
        DataError: missing, truncated, or without the text column.
    """
    with _batches(path) as batches:
        return any(str(row).startswith(_PNG_BASE64) for batch in batches for row in batch.column(_COLUMN))


def _check_rate(path: str, fps: float) -> None:
    if fps != FPS:
        raise DataError(f"frames file {path} was sampled at {FPS} frames/s and cannot be read at {fps:g}")


def _decode(path: str, row: int, value: pa.Scalar) -> np.ndarray:
    try:
        return decode_picture(base64.b64decode(value.as_py() or b"", validate=True))
    except (DataError, binascii.Error, ValueError) as error:
        raise DataError(f"row {row} of frames file {path} is not a picture: {error}") from error


@contextmanager
def _batches(path: str) -> Iterator[Iterator[pa.RecordBatch]]:
    """Open the table's record batches, in Arrow's stream or file format; errors of the file become a DataError."""
    filesystem, name = open_filesystem(path)
    if filesystem.get_file_info(name).type != fs.FileType.File:
        raise DataError(f"frames file {path} does not exist")
    try:
        with filesystem.open_input_file(name) as file:
            is_stream = file.read(6) != b"ARROW1"
            file.seek(0)
            with ipc.open_stream(file) if is_stream else ipc.open_file(file) as reader:
                kind = reader.schema.field(_COLUMN).type if _COLUMN in reader.schema.names else None
                if kind is None or not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
                    raise DataError(f"frames file {path} has no text column {_COLUMN!r}")
                yield iter(reader) if is_stream else map(reader.get_batch, range(reader.num_record_batches))
    except (pa.ArrowException, OSError) as error:
        reason = first_line(error)
        raise DataError(f"frames file {path} is truncated, corrupted or not an Arrow file: {reason}") from error
