"""Sentence vectors on disk, so that a repeated evaluation encodes nothing.

One folder an encoder, and in it files that are written whole and never changed: any number of processes may read and
write at once. Two that encode the same sentence both keep it.
"""

import io
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from prospect.files import open_filesystem, write_file
from prospect.messages import first_line

Vectors = dict[str, NDArray[np.float32]]

_MANY = 32
"""Files from which one is made when they are read."""


class VectorCache:
    """The vectors of one encoder by sentence.

    A file that cannot be read, or that has vectors of another width, is left out with a line; its sentences are
    encoded again. A folder that cannot be written costs a line too, and no evaluation.

    Args:
        folder: of this encoder alone.
        report: takes one line.
    """

    def __init__(self, folder: Path, report: Callable[[str], None] = print) -> None:
        self._folder, self._report = folder, report

    def read(self) -> Vectors:
        """All vectors; many files are merged into one."""
        files = sorted(self._folder.glob("*.parquet"))
        found: Vectors = {}
        whole = []
        for file in files:
            try:
                vectors = _read(file)
            except FileNotFoundError:  # another process has merged it meanwhile
                continue
            except (OSError, ValueError, KeyError) as error:  # pyarrow's errors are kinds of these
                self._report(f"sentence vectors: {file} is unreadable and not used ({first_line(error)}); delete it")
                continue
            found |= vectors
            whole.append(file)
        if len(whole) >= _MANY and self.add(found):
            for file in whole:
                file.unlink(missing_ok=True)
        return found

    def add(self, vectors: Mapping[str, NDArray[np.float32]]) -> bool:
        """Keep more vectors; returns whether they are on disk."""
        file = self._folder / f"{uuid.uuid4().hex}.parquet"
        try:
            filesystem, path = open_filesystem(file)
            write_file(filesystem, path, _serialise(vectors))
        except OSError as error:
            self._report(f"sentence vectors: {self._folder} cannot be written ({first_line(error)}); they are not kept")
            return False
        return True


def _serialise(vectors: Mapping[str, NDArray[np.float32]]) -> bytes:
    """Parquet with a checksum for each page."""
    import pyarrow as pa
    from pyarrow import parquet

    matrix = np.stack(list(vectors.values()))
    column = pa.FixedSizeListArray.from_arrays(pa.array(matrix.ravel()), matrix.shape[1])
    table = pa.table({"text": pa.array(list(vectors), pa.string()), "vector": column})
    buffer = io.BytesIO()
    parquet.write_table(table, buffer, compression="none", use_dictionary=False, write_page_checksum=True)
    return buffer.getvalue()


def _read(file: Path) -> Vectors:
    from pyarrow import parquet

    table = parquet.read_table(file, page_checksum_verification=True, partitioning=None).combine_chunks()
    texts: Sequence[str] = table["text"].to_pylist()
    vectors = table["vector"].combine_chunks()
    matrix = np.array(vectors.flatten(), dtype=np.float32).reshape(len(texts), -1)
    return dict(zip(texts, matrix, strict=True))
