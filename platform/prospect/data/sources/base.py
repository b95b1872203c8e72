"""Shared by all readers: files to raw records, raw records to dialogues, and reasons for what cannot be used."""

import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    FiniteFloat,
    StringConstraints,
    ValidationError,
    ValidationInfo,
)
from pydantic_core import PydanticCustomError

from prospect.data.sources.events import convert_usable
from prospect.data.sources.fields import Fields
from prospect.data.sources.files import JsonDecoder, is_file, is_folder, list_files, read_json
from prospect.data.sources.names import SPLITS, split_name
from prospect.data.sources.quarantine import QuarantinedRecord, shorten
from prospect.data.sources.settings import DataSettings
from prospect.dialogue.schema import Annotation, Dialogue, Record, Step, Text, Turn
from prospect.errors import DataError
from prospect.messages import first_mistake

Raw = dict[str, Any]
"""One record as the file has it."""

Trimmed = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
"""Text without white space around it, which may not be blank."""

OneLine = Annotated[Text, BeforeValidator(lambda text: " ".join(text.split()) if isinstance(text, str) else text)]
"""A step's name, which takes one line of the context: line breaks become spaces."""

Time = Annotated[FiniteFloat, Field(ge=0)]
"""Seconds."""

Duration = Annotated[FiniteFloat, Field(gt=0)]
"""Seconds of a video."""


def _not_reversed(end: float | None, info: ValidationInfo) -> float | None:
    start = info.data.get("start")
    if end is not None and start is not None and end < start:
        raise PydanticCustomError("reversed", "must not lie before start ({start} s)", {"start": start})
    return end


End = Annotated[Time, AfterValidator(_not_reversed)]
"""Seconds, not before the field `start` above it."""


class SourceRecord(BaseModel):
    """Base of the files' own schemas: the fields that a reader uses are validated."""

    model_config = ConfigDict(extra="ignore", frozen=True)


Result = Dialogue | QuarantinedRecord


def _one_record(raw: Raw) -> Iterable[Raw]:
    return (raw,)


@dataclass(frozen=True)
class Reader:
    """One format: its files in a folder, and the way from a raw record to a dialogue."""

    patterns: tuple[str, ...]
    """Names of its files in a folder. A path to a file is read under any name."""
    convert: Callable[[Raw], Dialogue]
    """Raises ValidationError or DataError for a record that cannot be used."""
    fields: Fields
    """The fields of one element that it uses; others are counted and named."""
    elements: Callable[[Raw], Iterable[Raw]] = _one_record
    """Opens a document of several videos into one element a video."""
    split: Callable[[Raw], Iterable[Raw | QuarantinedRecord]] = _one_record
    """Splits one element of the file into records, one a dialogue, and into what cannot be used."""
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
        return (result for row in SourceFile(self, os.fspath(path)).rows() for result in row.results)


@dataclass(frozen=True)
class ElementResults:
    """What one element of a file gave."""

    results: list[Result]
    ignored: list[tuple[str, Any]]
    """(dotted path, value) of every field that no reader uses."""


@dataclass(frozen=True)
class SourceFile:
    """One file of a source."""

    reader: Reader
    url: str
    dataset: str = ""
    """Data set of all its records where the folder names it; else each record names its own."""

    @property
    def name(self) -> str:
        return self.url.rsplit("/", 1)[-1]

    @property
    def split(self) -> str:
        """The split in the file's name; empty where it has none."""
        match = (
            re.search(r"(?:^|_)(train|val|validation|test)(?=[_.])", self.name) if self.reader.split_in_name else None
        )
        return split_name(match.group(1)) if match else ""

    def rows(self) -> Iterator[ElementResults]:
        """What each element of the file gives; turns sorted by time, equal times in source order.

        Raises:
            DataError: the file is unreadable as a whole.
        """
        decoder = JsonDecoder()
        for number, element in enumerate(read_json(self.url, decoder), 1):
            place, repeated = f"{self.name}:{number}", decoder.take_repeated()
            if isinstance(element, dict):
                for each in self.reader.elements(element):
                    yield self._row(each, place, repeated)
            else:
                reason = element if isinstance(element, str) else f"a {type(element).__name__} is not a record"
                yield ElementResults([QuarantinedRecord(self.dataset, place, "record", reason, place)], [])

    def _row(self, element: Raw, place: str, repeated: bool) -> ElementResults:
        element = element | {"dataset": self.dataset} if self.dataset else element
        results = list(self._results(element, place))
        for path, value in self.reader.fields.repeated(element) if repeated else ():
            reason = f"the field is there twice; the first value is used, and not {shorten(value)}"
            results.append(_quarantine(element, place, DataError(reason, field=path)))
        return ElementResults(results, list(self.reader.fields.ignored(element)))

    def _results(self, element: Raw, place: str) -> Iterator[Result]:
        try:
            parts = list(self.reader.split(element))
        except (ValidationError, DataError) as error:
            yield _quarantine(element, place, error)
            return
        for part in parts:
            if isinstance(part, QuarantinedRecord):
                yield replace(part, file=place)
                continue
            try:
                dialogue, left_out = convert_usable(self.reader.convert, part)
                yield self._finished(dialogue)
            except (ValidationError, DataError) as error:
                yield _quarantine(part, place, error)
            else:
                for each in left_out:
                    yield _quarantine(part, place, DataError(each.reason, field=each.field))

    def _finished(self, dialogue: Dialogue) -> Dialogue:
        turns = tuple(sorted(dialogue.turns, key=lambda turn: turn.time))
        _share_fields_set((*turns, *dialogue.steps, *dialogue.annotations))
        split = split_name(dialogue.split) or self.split
        if split and split not in SPLITS:
            raise DataError(f"{dialogue.split!r} must be one of {', '.join(SPLITS)}", field="split")
        return dialogue.model_copy(update={"turns": turns, "split": split})


def _share_fields_set(records: Iterable[Record]) -> None:
    """Give all records of a class one `model_fields_set`, which nothing reads.

    Pydantic makes one a record: 728 bytes, more than the record itself. A source may hold two million records.
    """
    for record in records:
        object.__setattr__(record, "__pydantic_fields_set__", _FIELDS[type(record)])


_FIELDS: dict[type[Record], set[str]] = {kind: set(kind.model_fields) for kind in (Turn, Step, Annotation)}


def recipe_steps(names: Iterable[str]) -> tuple[Step, ...]:
    """Steps known from the recipe alone, without times and transitions."""
    return tuple(Step(id=f"S{n}", name=" ".join(name.split()), source="recipe") for n, name in enumerate(names, 1))


def _quarantine(raw: Raw, place: str, error: ValidationError | DataError) -> QuarantinedRecord:
    names = (next((raw[key] for key in _VIDEO_IDS if raw.get(key)), place), raw.get("dialogue_id"))
    field, reason = explain(error, raw)
    dataset, identity, field = (
        text.encode(errors="backslashreplace").decode()  # a report can hold anything but half an emoji
        for text in (str(raw.get("dataset") or ""), "/".join(str(n) for n in names if n), field)
    )
    return QuarantinedRecord(dataset, identity, field, reason, place)


_VIDEO_IDS = ("video_id", "video_uid", "video_name", "video")


def explain(error: ValidationError | DataError, raw: Any) -> tuple[str, str]:
    """The field and the one sentence of an error in `raw`."""
    if isinstance(error, DataError):
        return error.field or "record", str(error)
    mistake = first_mistake(error.errors(include_url=False), raw)
    return mistake.field or "record", mistake.reason
