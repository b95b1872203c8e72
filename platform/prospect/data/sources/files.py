"""Reading from any file system: listing folders, and JSON documents and JSON lines one element at a time."""

import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator
from fnmatch import fnmatch
from typing import Any, Literal, TextIO

from prospect.errors import DataError
from prospect.files import open_filesystem

Kind = Literal["File", "Directory"]
"""Names of pyarrow's file types. It is imported where files are read, not where a configuration is composed."""

CHUNK = 1 << 24
"""Characters of a document held besides the element that they complete."""

_OPENING = re.compile(r"\s*\[\s*(\])?")
_NEXT = re.compile(r"\s*(?:(\])|,)\s*")


def is_file(url: str) -> bool:
    """Whether a file lies there; a folder, or nothing, is none."""
    return _kind(url) == "File"


def is_folder(url: str) -> bool:
    """Whether a folder lies there."""
    return _kind(url) == "Directory"


def _kind(url: str) -> str:
    filesystem, path = open_filesystem(url)
    try:
        return str(filesystem.get_file_info(path).type.name)
    except (OSError, ValueError) as error:
        raise DataError(f"{url} cannot be reached: {error}", field="data.path") from None


def list_files(folder: str, *patterns: str, recursive: bool = False) -> list[str]:
    """Paths or URLs of the files in a folder whose name fits one of the patterns, sorted; none where it is missing."""
    found = _entries(folder, recursive, "File")
    return [url for url in found if any(fnmatch(url.rsplit("/", 1)[-1], pattern) for pattern in patterns)]


def list_folders(folder: str) -> list[str]:
    """Names of the folders in a folder, sorted."""
    return [url.rsplit("/", 1)[-1] for url in _entries(folder, False, "Directory")]


def _entries(folder: str, recursive: bool, kind: Kind) -> list[str]:
    from pyarrow import fs

    filesystem, base = open_filesystem(folder)
    try:
        entries = filesystem.get_file_info(fs.FileSelector(base, allow_not_found=True, recursive=recursive))
    except (OSError, ValueError) as error:
        raise DataError(f"{folder} cannot be listed: {error}", field="data.path") from None
    head, question, query = folder.partition("?") if "://" in folder else (base, "", "")
    paths = sorted(entry.path for entry in entries if entry.type.name == kind)
    return [f"{head.rstrip('/')}{path[len(base) :]}{question}{query}" for path in paths]


def read_json(url: str) -> Iterator[Any]:
    """The elements of a JSON list, the one value of another document, or the lines of a `.jsonl` file.

    A line that is not valid JSON comes as the sentence on what is wrong with it. Memory holds one element and
    a chunk of the file, whatever the file's size. A name that ends in `.gz` is decompressed.

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
    except (OSError, EOFError, zlib.error, ValueError) as error:
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
    """The next element, or none at the list's end, and where it ends; raises where the buffer is cut inside it."""
    match = separator.match(buffer, at)
    if match is None:
        raise json.JSONDecodeError("Expecting ',' delimiter", buffer, at)
    if match[1]:
        return [], match.end()
    element, end = json.JSONDecoder().raw_decode(buffer, match.end())
    return [element], end
