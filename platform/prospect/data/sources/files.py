"""Lists folders, and reads JSON documents and JSON lines element by element, on any file system."""

import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator
from fnmatch import fnmatch
from typing import Any, TextIO

from pyarrow import ArrowInvalid, fs

from prospect.errors import DataError
from prospect.files import open_filesystem

CHUNK = 1 << 24
"""Characters of a document read at a time."""

_OPENING = re.compile(r"\s*\[\s*(\])?")
_NEXT = re.compile(r"\s*(?:(\])|,)\s*")


def is_file(url: str) -> bool:
    """Whether `url` is a file."""
    return _kind(url) == fs.FileType.File


def is_folder(url: str) -> bool:
    """Whether `url` is a folder."""
    return _kind(url) == fs.FileType.Directory


def _kind(url: str) -> fs.FileType:
    filesystem, path = open_filesystem(url)
    try:
        return filesystem.get_file_info(path).type
    except (OSError, ArrowInvalid) as error:
        raise DataError(f"{url} cannot be reached: {error}", field="data.path") from None


def list_files(folder: str, *patterns: str, recursive: bool = False) -> list[str]:
    """Paths or URLs of the files in a folder whose name fits one of the patterns, sorted; none where it is missing."""
    found = _entries(folder, recursive, fs.FileType.File)
    return [url for url in found if any(fnmatch(url.rsplit("/", 1)[-1], pattern) for pattern in patterns)]


def list_folders(folder: str) -> list[str]:
    """Names of the folders in a folder, sorted."""
    return [url.rsplit("/", 1)[-1] for url in _entries(folder, False, fs.FileType.Directory)]


def _entries(folder: str, recursive: bool, kind: fs.FileType) -> list[str]:
    filesystem, base = open_filesystem(folder)
    try:
        entries = filesystem.get_file_info(fs.FileSelector(base, allow_not_found=True, recursive=recursive))
    except (OSError, ArrowInvalid) as error:
        raise DataError(f"{folder} cannot be listed: {error}", field="data.path") from None
    head, question, query = folder.partition("?") if "://" in folder else (base, "", "")
    paths = sorted(entry.path for entry in entries if entry.type == kind)
    return [f"{head.rstrip('/')}{path[len(base) :]}{question}{query}" for path in paths]


def read_json(url: str) -> Iterator[Any]:
    """The elements of a JSON list, the one value of another document, or the lines of a `.jsonl` file.

    A line that is not valid JSON is yielded as a sentence that says why. Memory holds one element and one chunk
    of the file. A name that ends in `.gz` is decompressed.

    Raises:
        DataError: the file cannot be read, or is not a valid JSON document.
    """
    name = url.partition("?")[0] if "://" in url else url
    try:
        with _open(url, name) as text:
            lines = ".jsonl" in name.rsplit("/", 1)[-1]
            yield from (_line(line) for line in text if line.strip()) if lines else _document(text)
    except json.JSONDecodeError as error:
        raise DataError(f"data.path: {url} is not valid JSON: {error}", field="data.path") from None
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, ArrowInvalid) as error:
        raise DataError(f"data.path: {url} cannot be read: {error}", field="data.path") from None


def _open(url: str, name: str) -> TextIO:
    filesystem, path = open_filesystem(url)
    stream: Any = filesystem.open_input_stream(path, compression=None)
    if name.endswith(".gz"):
        stream = gzip.GzipFile(fileobj=stream)
    return io.TextIOWrapper(stream, encoding="utf-8")


def _line(line: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        return f"the line is not valid JSON: {error}"


def _document(text: TextIO) -> Iterator[Any]:
    buffer, at, separator = text.read(CHUNK), 0, _OPENING
    if not buffer.lstrip().startswith("["):
        yield json.loads(buffer + text.read())
        return
    while True:
        try:
            found, at = _element(buffer, at, separator)
        except json.JSONDecodeError:
            more = text.read(CHUNK)
            if not more:
                raise
            buffer, at = buffer[at:] + more, 0
            continue
        if not found:
            break
        separator = _NEXT
        yield found[0]
    rest = buffer[at:] + text.read()
    if rest.strip():
        raise json.JSONDecodeError("Extra data", rest, 0)


def _element(buffer: str, at: int, separator: re.Pattern[str]) -> tuple[list[Any], int]:
    """The next element ([] at the end of the list) and its end in `buffer`; raises where the buffer cuts it."""
    match = separator.match(buffer, at)
    if match is None:
        raise json.JSONDecodeError("Expecting ',' delimiter", buffer, at)
    if match[1]:
        return [], match.end()
    element, end = json.JSONDecoder().raw_decode(buffer, match.end())
    return [element], end
