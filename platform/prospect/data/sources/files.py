"""Lists folders, and reads JSON documents and JSON lines element by element, on any file system."""

import codecs
import gzip
import io
import json
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatch
from typing import TYPE_CHECKING, Any, Literal, TextIO

from prospect.errors import DataError
from prospect.files import open_filesystem

if TYPE_CHECKING:
    from pyarrow import fs

Kind = Literal["File", "Directory"]
"""Names of pyarrow's file types; pyarrow is imported when files are read, not when a configuration is composed."""

CHUNK = 1 << 24
"""Characters of a document read at a time."""

_ARCHIVED_BY_MAC = "__MACOSX"
"""Folder that a Mac puts into its zip files, with one hidden file for each real one."""

_MARK = "\ufeff"
"""A byte order mark; one stands inside a file that was made of several."""

_OPENING = re.compile(r"\s*\[\s*(\])?")
_NEXT = re.compile(r"\s*(?:(\])|,)\s*")


def is_file(url: str) -> bool:
    """Whether `url` is a file."""
    return _kind(url) == "File"


def is_folder(url: str) -> bool:
    """Whether `url` is a folder."""
    return _kind(url) == "Directory"


def _kind(url: str) -> str:
    filesystem, path = open_filesystem(url)
    try:
        return str(filesystem.get_file_info(path).type.name)
    except (OSError, ValueError) as error:
        raise DataError(f"{url} cannot be reached: {error}", field="data.path") from None


def list_files(folder: str, *patterns: str, recursive: bool = False) -> list[str]:
    """Paths or URLs of the files in a folder whose name fits one of the patterns, sorted; [] if the folder is missing.

    Hidden files and folders are left out.
    """
    found = _entries(folder, recursive, "File")
    return [url for url in found if any(fnmatch(url.rsplit("/", 1)[-1], pattern) for pattern in patterns)]


def list_folders(folder: str) -> list[str]:
    """Names of the folders in a folder, sorted."""
    return [url.rsplit("/", 1)[-1] for url in _entries(folder, False, "Directory")]


def _entries(folder: str, recursive: bool, kind: Kind) -> list[str]:
    filesystem, base = open_filesystem(folder)
    try:
        entries = list(_walk(filesystem, base) if recursive else _visible(filesystem, base))
    except (OSError, ValueError) as error:
        raise DataError(f"{folder} cannot be listed: {error}", field="data.path") from None
    head, question, query = folder.partition("?") if "://" in folder else (base, "", "")
    paths = sorted(entry.path for entry in entries if entry.type.name == kind)
    return [f"{head.rstrip('/')}{path[len(base) :]}{question}{query}" for path in paths]


def _visible(filesystem: "fs.FileSystem", folder: str, recursive: bool = False) -> "Iterator[fs.FileInfo]":
    """What lies in a folder, without hidden files and folders (`._a.jsonl`, `.Trash-1000`)."""
    from pyarrow import fs

    for entry in filesystem.get_file_info(fs.FileSelector(folder, allow_not_found=True, recursive=recursive)):
        below = entry.path[len(folder) :].strip("/").split("/")
        if not any(name.startswith(".") or name == _ARCHIVED_BY_MAC for name in below):
            yield entry


def _walk(filesystem: "fs.FileSystem", base: str) -> "Iterator[fs.FileInfo]":
    """Everything visible below a folder. A local folder is listed once, whatever links lead to it."""
    from pyarrow import fs

    if not isinstance(filesystem, fs.LocalFileSystem):
        yield from _visible(filesystem, base, recursive=True)
        return
    folders, links, seen = [base], list[str](), set[str]()
    while folders or links:
        folder = folders.pop() if folders else links.pop()
        if (real := os.path.realpath(folder)) in seen:
            continue
        seen.add(real)
        for entry in _visible(filesystem, folder):
            yield entry
            if entry.type.name == "Directory":
                (links if os.path.islink(entry.path) else folders).append(entry.path)


class RepeatedKeys(dict[str, Any]):
    """A JSON object in which a key is there twice: it holds the first values."""

    def __init__(self, values: Mapping[str, Any], later: Iterable[tuple[str, Any]] = ()) -> None:
        super().__init__(values)
        self.later = tuple(later)
        """The later values of repeated keys."""

    def __or__(self, other: dict[Any, Any]) -> "RepeatedKeys":  # type: ignore[override]
        return RepeatedKeys({**self, **other}, self.later)


class JsonDecoder(json.JSONDecoder):
    """Decodes JSON and remembers whether an object had a key twice."""

    def __init__(self) -> None:
        super().__init__(object_pairs_hook=self._object)
        self._repeated = False

    def take_repeated(self) -> bool:
        """Whether there was a `RepeatedKeys` since the last call."""
        found, self._repeated = self._repeated, False
        return found

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) == len(pairs):
            return values
        self._repeated = True
        first: dict[str, Any] = {}
        later = [(key, value) for key, value in pairs if first.setdefault(key, value) is not value]
        return RepeatedKeys(first, later)


def read_json(url: str, decoder: JsonDecoder | None = None) -> Iterator[Any]:
    """The elements of a JSON list, the one value of another document, or the lines of a `.jsonl` file.

    A line that is not valid JSON is yielded as a sentence that says why. Memory holds one element and one chunk
    of the file. A name that ends in `.gz` is decompressed. Text is UTF-8, or UTF-16 with its byte order mark;
    bytes that are neither become lone surrogates, which no field accepts.

    Raises:
        DataError: the file cannot be read, or is not a valid JSON document.
    """
    name = url.partition("?")[0] if "://" in url else url
    decoder = decoder or JsonDecoder()
    try:
        with _open(url, name) as text:
            if ".jsonl" in name.rsplit("/", 1)[-1]:
                yield from (_line(line, decoder) for raw in text if (line := raw.strip().strip(_MARK)))
            else:
                yield from _document(text, decoder)
    except json.JSONDecodeError as error:
        raise DataError(f"data.path: {url} is not valid JSON: {error}", field="data.path") from None
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise DataError(f"data.path: {url} cannot be read: {error}", field="data.path") from None


def _open(url: str, name: str) -> TextIO:
    filesystem, path = open_filesystem(url)
    stream: Any = filesystem.open_input_stream(path, compression=None)
    if name.endswith(".gz"):
        stream = gzip.GzipFile(fileobj=stream)
    bytes_ = io.BufferedReader(stream)
    utf16 = bytes_.peek(2)[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    errors = "strict" if utf16 else "surrogateescape"
    return io.TextIOWrapper(bytes_, encoding="utf-16" if utf16 else "utf-8-sig", errors=errors)


def _line(line: str, decoder: JsonDecoder) -> Any:
    try:
        return decoder.decode(line)
    except json.JSONDecodeError as error:
        return f"the line is not valid JSON: {error}"
    except RecursionError:
        return "the line is not valid JSON: it is nested too deeply"


def _document(text: TextIO, decoder: JsonDecoder) -> Iterator[Any]:
    buffer, at, separator = text.read(CHUNK), 0, _OPENING
    if not buffer.lstrip().startswith("["):
        yield decoder.decode(buffer + text.read())
        return
    while True:
        try:
            found, at = _element(buffer, at, separator, decoder)
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


def _element(buffer: str, at: int, separator: re.Pattern[str], decoder: JsonDecoder) -> tuple[list[Any], int]:
    """The next element ([] at the end of the list) and its end in `buffer`; raises where the buffer cuts it."""
    match = separator.match(buffer, at)
    if match is None:
        raise json.JSONDecodeError("Expecting ',' delimiter", buffer, at)
    if match[1]:
        return [], match.end()
    element, end = decoder.raw_decode(buffer, match.end())
    return [element], end
