"""What all readers share: files to raw records, raw records to dialogues, and why a record could not be one."""

import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, StringConstraints, ValidationError

from prospect.data.sources.files import is_file, is_folder, list_files, read_json
from prospect.data.sources.names import split_name
from prospect.data.sources.settings import DataSettings
from prospect.dialogue.schema import Annotation, Dialogue, Record, Step, Turn
from prospect.errors import DataError
from prospect.messages import first_mistake

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


Result = Dialogue | QuarantinedRecord


def _whole(raw: Raw) -> Iterable[Raw]:
    return (raw,)


@dataclass(frozen=True)
class Reader:
    """One format: which files of a folder it reads, and how a raw record becomes a dialogue."""

    patterns: tuple[str, ...]
    """Names of its files in a folder; a path to a file is read whatever its name."""
    convert: Callable[[Raw], Dialogue]
    """Raises ValidationError or DataError for a record that cannot be used."""
    split: Callable[[Raw], Iterable[Raw | QuarantinedRecord]] = _whole
    """Cuts one element of the file into the records of one dialogue each, and into what of it cannot be used."""
    split_in_name: bool = False
    """Whether a file's name says the split: `train_filtered.json`, `dialog-klg_val_L4096_I1.jsonl`."""

    def files(self, settings: DataSettings) -> list["SourceFile"]:
        """The files to read, sorted.

        Raises:
            DataError: `settings.path` does not exist, or is a folder without such a file.
        """
        path = settings.path
        if is_file(path):
            return [SourceFile(self, path)]
        if not is_folder(path):
            raise DataError(f"data.path: {path} does not exist", field="data.path")
        found = list_files(path, *self.patterns)
        if not found:
            raise DataError(f"data.path: {path} holds no {' or '.join(self.patterns)}", field="data.path")
        return [SourceFile(self, file) for file in found]

    def read(self, path: str | os.PathLike[str]) -> Iterator[Result]:
        """Every result of one file.

        Raises:
            DataError: the file is unreadable as a whole.
        """
        return (result for row in SourceFile(self, os.fspath(path)).rows() for result in row)


@dataclass(frozen=True)
class SourceFile:
    """One file of a source."""

    reader: Reader
    url: str
    dataset: str = ""
    """Data set of all its records, where the file's place says it; else each record names its own."""

    @property
    def name(self) -> str:
        return self.url.rsplit("/", 1)[-1]

    @property
    def split(self) -> str:
        """The split that the file's name says; empty where it says none."""
        match = (
            re.search(r"(?:^|_)(train|val|validation|test)(?=[_.])", self.name) if self.reader.split_in_name else None
        )
        return split_name(match.group(1)) if match else ""

    def rows(self) -> Iterator[list[Result]]:
        """The results of one element of the file after the other, turns sorted by time, equal times in source order.

        Raises:
            DataError: the file is unreadable as a whole.
        """
        for number, element in enumerate(read_json(self.url), 1):
            place = f"{self.name}:{number}"
            if isinstance(element, dict):
                yield list(self._results(element | {"dataset": self.dataset} if self.dataset else element, place))
            else:
                reason = element if isinstance(element, str) else f"a {type(element).__name__} is not a record"
                yield [QuarantinedRecord(self.dataset, place, "record", reason)]

    def _results(self, element: Raw, place: str) -> Iterator[Result]:
        try:
            parts = list(self.reader.split(element))
        except (ValidationError, DataError) as error:
            yield _quarantine(element, place, error)
            return
        for part in parts:
            if isinstance(part, QuarantinedRecord):
                yield part
                continue
            try:
                yield self._finished(self.reader.convert(part))
            except (ValidationError, DataError) as error:
                yield _quarantine(part, place, error)

    def _finished(self, dialogue: Dialogue) -> Dialogue:
        turns = tuple(sorted(dialogue.turns, key=lambda turn: turn.time))
        _slim((*turns, *dialogue.steps, *dialogue.annotations))
        return dialogue.model_copy(update={"turns": turns, "split": split_name(dialogue.split or self.split)})


def _slim(records: Iterable[Record]) -> None:
    """Gives all records of a class one set of the fields that were given, which nobody asks for.

    Each has its own otherwise: 728 bytes, more than the record itself, of which a source may hold two million.
    """
    for record in records:
        object.__setattr__(record, "__pydantic_fields_set__", _FIELDS[type(record)])


_FIELDS: dict[type[Record], set[str]] = {kind: set(kind.model_fields) for kind in (Turn, Step, Annotation)}


def recipe_steps(names: Iterable[str]) -> tuple[Step, ...]:
    """Steps of which the recipe alone is known, so that they have no times and no transitions."""
    return tuple(Step(id=f"S{n}", name=" ".join(name.split()), source="recipe") for n, name in enumerate(names, 1))


def _quarantine(raw: Raw, place: str, error: ValidationError | DataError) -> QuarantinedRecord:
    names = (raw.get("video_id") or raw.get("video_uid") or raw.get("video_name") or place, raw.get("dialogue_id"))
    field, reason = explain(error, raw)
    return QuarantinedRecord(str(raw.get("dataset") or ""), "/".join(str(n) for n in names if n), field, reason)


def explain(error: ValidationError | DataError, raw: Any) -> tuple[str, str]:
    """The field and the one sentence of an error in `raw`."""
    if isinstance(error, DataError):
        return error.field or "record", str(error)
    mistake = first_mistake(error.errors(include_url=False), raw)
    return mistake.field or "record", mistake.reason
