"""Records of what was left out, and their reasons, grouped with counts."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class QuarantinedRecord:
    """A record, or one event or value of it, that cannot be used."""

    dataset: str
    id: str
    """`video_id/dialogue_id` as far as known, else `file:record`."""
    field: str
    """Where it stands in the record, such as `turns.3.text`; indices count from 0."""
    reason: str
    """One sentence."""
    file: str = ""
    """Name of the file and number of the record in it, such as `a.jsonl:17`; empty where no file is at fault."""

    def __str__(self) -> str:
        place = f" ({self.file})" if self.file and self.file != self.id else ""
        return f"{self.dataset or 'unknown dataset'} {self.id}{place}: {self.field}: {self.reason}"


@dataclass(frozen=True)
class Reason:
    """Records that were left out for the same reason."""

    count: int
    field: str
    """The field, with `N` for indices."""
    first: QuarantinedRecord

    def __str__(self) -> str:
        return f"{self.count:,} at {self.field}; the first: {self.first}"


def group_reasons(records: Iterable[QuarantinedRecord]) -> list[Reason]:
    """The reasons, the most frequent first; numbers and quoted values do not tell reasons apart."""
    groups: dict[tuple[str, str], Reason] = {}
    for record in records:
        field = re.sub(r"\d+", "N", _without_values(record.field))
        key = field, re.sub(r"\d+(\.\d+)?", "N", _without_values(record.reason))
        known = groups.get(key)
        groups[key] = replace(known, count=known.count + 1) if known else Reason(1, field, record)
    return sorted(groups.values(), key=lambda reason: -reason.count)


_VALUE = re.compile(r"""^.*?(?= must )|'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\"""")


def _without_values(text: str) -> str:
    return _VALUE.sub("…", text)


def shorten(value: Any) -> str:
    """A value as Python writes it, in 60 characters at most."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
