"""What all readers share: files to raw records, raw records to dialogues, and why a record could not be one."""

import gzip
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TextIO, cast

from pydantic import BaseModel, BeforeValidator, ConfigDict, StringConstraints, ValidationError

from prospect.dialogue.schema import Dialogue, Step
from prospect.errors import DataError

Raw = dict[str, Any]
"""One record as the file has it."""

Trimmed = Annotated[str, StringConstraints(strip_whitespace=True)]
"""Text without white space around it, so that a blank utterance is found to be empty."""

OneLine = Annotated[str, BeforeValidator(lambda text: " ".join(text.split()) if isinstance(text, str) else text)]
"""A step's name: it stands on one line of the context, so line breaks inside become spaces."""


class SourceRecord(BaseModel):
    """Base of the files' own schemas: what a reader uses is validated, what it does not use is ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True)


@dataclass(frozen=True)
class QuarantinedRecord:
    """A record, or one event of it, that cannot be used."""

    dataset: str
    id: str
    """`video_id/dialogue_id` as far as known, else where it stands: `file:record`."""
    field: str
    reason: str
    """One sentence."""

    def __str__(self) -> str:
        return f"{self.dataset or 'unknown dataset'} {self.id}: {self.field}: {self.reason}"


def _whole(raw: Raw) -> Iterable[Raw]:
    return (raw,)


@dataclass(frozen=True)
class Reader:
    """One format: which files of a folder it reads, and how a raw record becomes a dialogue."""

    patterns: tuple[str, ...]
    """Names of its files in a folder; a path to a file is read whatever its name."""
    convert: Callable[[Raw], Dialogue]
    """Raises ValidationError or DataError for a record that cannot be used."""
    split: Callable[[Raw], Iterable[Raw]] = _whole
    """Cuts one element of the file into the records of one dialogue each."""
    split_in_name: bool = False
    """Whether a file's name says the split: `train_filtered.json`, `dialog-klg_val_L4096_I1.jsonl`."""

    def files(self, path: Path) -> list[Path]:
        """The files to read, sorted.

        Raises:
            DataError: `path` does not exist, or is a folder without such a file.
        """
        if path.is_file():
            return [path]
        if not path.is_dir():
            raise DataError(f"data.path: there is no file or folder at {path}", field="data.path")
        found = sorted({file for pattern in self.patterns for file in path.glob(pattern) if file.is_file()})
        if not found:
            raise DataError(f"data.path: {path} holds no {' or '.join(self.patterns)}", field="data.path")
        return found

    def read(self, file: Path) -> Iterator[Dialogue | QuarantinedRecord]:
        """One result for every record of `file`, in its order; turns sorted by time, equal times in source order.

        Raises:
            DataError: the file is unreadable as a whole.
        """
        split = _split_of(file) if self.split_in_name else ""
        for place, element in _elements(file):
            if isinstance(element, QuarantinedRecord):
                yield element
                continue
            try:
                records = list(self.split(element))
            except (ValidationError, DataError) as error:
                yield _quarantine(element, place, error)
                continue
            for raw in records:
                try:
                    yield _finished(self.convert(raw), split)
                except (ValidationError, DataError) as error:
                    yield _quarantine(raw, place, error)


def recipe_steps(names: Iterable[str]) -> tuple[Step, ...]:
    """Steps of which the recipe alone is known, so that they have no times and no transitions."""
    return tuple(Step(id=f"S{n}", name=" ".join(name.split()), source="recipe") for n, name in enumerate(names, 1))


def _finished(dialogue: Dialogue, split: str) -> Dialogue:
    turns = tuple(sorted(dialogue.turns, key=lambda turn: turn.time))
    return dialogue.model_copy(update={"turns": turns, "split": dialogue.split or split})


def _split_of(file: Path) -> str:
    match = re.search(r"(?:^|_)(train|val|test)(?=[_.])", file.name)
    return match.group(1) if match else ""


def _open(file: Path) -> TextIO:
    if file.suffix == ".gz":
        return cast(TextIO, gzip.open(file, "rt", encoding="utf-8"))
    return file.open(encoding="utf-8")


def _elements(file: Path) -> Iterator[tuple[str, Raw | QuarantinedRecord]]:
    """(where, element) of a JSON document or of JSON lines; a broken line is quarantined, a broken document raises."""
    lines = ".jsonl" in file.suffixes
    try:
        with _open(file) as text:
            parsed = enumerate(map(_line, (line for line in text if line.strip())), 1) if lines else _document(text)
            for number, element in parsed:
                place = f"{file.name}:{number}"
                if isinstance(element, dict):
                    yield place, element
                else:
                    reason = element if isinstance(element, str) else f"a {type(element).__name__} is not a record"
                    yield place, QuarantinedRecord("", place, "record", reason)
    except json.JSONDecodeError as error:
        raise DataError(f"data.path: {file} is not valid JSON: {error}", field="data.path") from None
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise DataError(f"data.path: {file} cannot be read: {error}", field="data.path") from None


def _document(text: TextIO) -> Iterable[tuple[int, Any]]:
    document = json.load(text)
    return enumerate(document if isinstance(document, list) else [document], 1)


def _line(line: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        return f"the line is not valid JSON: {error}"


def _quarantine(raw: Raw, place: str, error: ValidationError | DataError) -> QuarantinedRecord:
    names = (raw.get("video_id") or raw.get("video_uid") or place, raw.get("dialogue_id"))
    field, reason = _explain(error)
    return QuarantinedRecord(str(raw.get("dataset") or ""), "/".join(str(n) for n in names if n), field, reason)


def _explain(error: ValidationError | DataError) -> tuple[str, str]:
    if isinstance(error, DataError):
        return error.field or "record", str(error)
    first, *others = error.errors(include_url=False)
    value = "" if first["type"] == "missing" else f", not {_short(first['input'])}"
    more = f" (and {len(others)} more)" if others else ""
    return ".".join(map(str, first["loc"])) or "record", f"{first['msg']}{value}{more}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
