"""Files by path or URL: one way to any file system that pyarrow or fsspec opens. The bottom layer."""

import contextlib
import hashlib
import json
import os
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fsspec.core import url_to_fs

from prospect.errors import DataError
from prospect.messages import first_line

if TYPE_CHECKING:
    from pyarrow import fs

_BLOCK = 1 << 20


def open_filesystem(root: str | os.PathLike[str]) -> "tuple[fs.FileSystem, str]":
    """The file system of a local path or of a URL (`s3://bucket/videos`), and the path on it.

    Raises:
        DataError: no installed package opens such a URL.
    """
    import pyarrow as pa  # here, because a GPU machine that only measures has none
    from pyarrow import fs

    root = os.fspath(root)
    if "://" not in root:
        return fs.LocalFileSystem(), os.path.abspath(root)
    try:
        filesystem, path = fs.FileSystem.from_uri(root)
    except (pa.ArrowInvalid, OSError):
        try:
            generic, path = url_to_fs(root)
        except (ValueError, ImportError, OSError) as error:
            sentence = f"root ({root}) must be a path, or a URL that an installed package opens: {error}"
            raise DataError(sentence, field="root") from error
        filesystem = fs.PyFileSystem(fs.FSSpecHandler(generic))
    return filesystem, path.rstrip("/")


def is_file(filesystem: "fs.FileSystem", path: str) -> bool:
    """Whether there is such a file."""
    return bool(filesystem.get_file_info(path).is_file)


def write_file(filesystem: "fs.FileSystem", path: str, data: bytes | Iterable[bytes]) -> None:
    """Write a file atomically: a process that dies here leaves no partial file under this name."""
    folder = os.path.dirname(path)
    filesystem.create_dir(folder, recursive=True)
    temporary = f"{folder}/.{uuid.uuid4().hex}.partial"
    try:
        with filesystem.open_output_stream(temporary) as file:
            for part in (data,) if isinstance(data, bytes) else data:
                file.write(part)
        filesystem.move(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            filesystem.delete_file(temporary)
        raise


def write_text(file: Path, text: str) -> None:
    """`write_file` on the local file system; needs no pyarrow."""
    write_bytes(file, text.encode())


def write_bytes(file: Path, data: bytes) -> None:
    """`write_text` of bytes."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.parent / f".{uuid.uuid4().hex}.partial"
    try:
        temporary.write_bytes(data)
        os.replace(temporary, file)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_below(root: str, name: str, text: str) -> None:
    """Write the file `name` below a folder or URL, atomically; only a URL needs pyarrow.

    Raises:
        DataError: it cannot be written.
    """
    try:
        if "://" not in root:
            write_text(Path(root, name), text)
            return
        filesystem, path = open_filesystem(root)
        write_file(filesystem, f"{path}/{name}", text.encode())
    except (OSError, ValueError, NotImplementedError) as error:  # pyarrow's errors are kinds of these
        raise DataError(first_line(error), field="root") from error


def write_json(file: Path, values: Mapping[str, Any]) -> None:
    """Write indented JSON atomically."""
    write_text(file, json.dumps(values, indent=2))


def hash_source(path: str | os.PathLike[str]) -> str:
    """SHA-256 in hex of a file by path or URL; reads in blocks, so size does not matter.

    Raises:
        OSError: the file cannot be read.
        DataError: no installed package opens such a URL.
    """
    filesystem, inside = open_filesystem(path)
    digest = hashlib.sha256()
    with filesystem.open_input_stream(inside) as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def file_size(path: str | os.PathLike[str]) -> int | None:
    """Bytes of a file by path or URL; None where it cannot be opened."""
    try:
        filesystem, inside = open_filesystem(path)
        return filesystem.get_file_info(inside).size
    except (OSError, DataError):
        return None
