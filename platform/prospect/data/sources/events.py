"""Leaves out the events of a record that cannot be used, so that one bad value does not cost the record."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from prospect.dialogue.schema import Dialogue
from prospect.errors import DataError
from prospect.messages import Finding, first_mistake

Raw = dict[str, Any]
Path = tuple[str | int, ...]


@dataclass(frozen=True)
class LeftOut:
    """An event or a value that was left out."""

    path: Path
    """Where it stands in the file's record."""
    reason: str
    """One sentence."""

    @property
    def field(self) -> str:
        return ".".join(map(str, self.path))


IDENTITY = frozenset({"dataset", "dialogue_id", "split", "video_id", "video_uid", "video_name"})
"""Fields without which nobody knows what a record is about; with a wrong one it is not used."""


def convert_usable(convert: Callable[[Raw], Dialogue], raw: Raw) -> tuple[Dialogue, list[LeftOut]]:
    """Convert a record without the events and optional values that do not validate.

    Args:
        convert: raises ValidationError with locations in the raw record.
        raw: the record; it is not changed.

    Returns:
        The dialogue, and what was left out.

    Raises:
        DataError: the record cannot be used even without them.
    """
    left_out: list[LeftOut] = []
    gone: dict[Path, set[int]] = {}
    while True:
        try:
            return convert(raw), left_out
        except ValidationError as error:
            found = _removable(raw, error.errors(include_url=False), left_out)
        left_out += [LeftOut(_in_file(each.path, gone), each.reason) for each in found.values() if each]
        entries = [(path[:-1], _in_file(path, gone)[-1]) for path in found if isinstance(path[-1], int)]
        for parent, index in entries:
            gone.setdefault(parent, set()).add(int(index))
        raw = _without(raw, found)


def _removable(raw: Raw, findings: Iterable[Finding], earlier: list[LeftOut]) -> dict[Path, LeftOut | None]:
    """The paths of events and optional values that must be left out, each with the first finding about it.

    A null counts as absent, with nothing to report unless the field is required.

    Raises:
        DataError: a finding is about the record itself.
    """
    found: dict[Path, LeftOut | None] = {}
    for finding in findings:
        path, location = _path(raw, finding["loc"])
        if finding["input"] is None and path and path == location:
            found[path] = None
            continue
        each = LeftOut(location, first_mistake([finding], raw).reason)
        index = next((place for place in range(len(path) - 1, -1, -1) if isinstance(path[place], int)), None)
        if index is None and not _optional(path, finding["type"]):
            cause = next((known for known in earlier if known.path == location), each)  # left out, but required
            raise DataError(cause.reason, field=cause.field or None)
        found.setdefault(path if index is None else path[: index + 1], each)
    return found


def _optional(path: Path, kind: str) -> bool:
    """Whether a record keeps its meaning without this field; without its steps or turns it does not."""
    if not path or path[0] in IDENTITY or kind in ("missing", "extra_forbidden"):
        return False
    return kind != "tuple_type" or path == ("annotations",)


def _path(raw: Any, location: tuple[str | int, ...]) -> tuple[Path, Path]:
    """The part of a location that stands in the record, and the location without names of a union's members."""
    inside: list[str | int] = []
    named: list[str | int] = []
    for place, part in enumerate(location, 1):
        here = part in raw if isinstance(raw, dict) else isinstance(raw, list | tuple) and part in range(len(raw))
        if here:
            raw = raw[part]
            inside.append(part)
        if here or place == len(location):
            named.append(part)
    return tuple(inside), tuple(named)


def _in_file(path: Path, gone: dict[Path, set[int]]) -> Path:
    """The path with the indices of the file, where earlier entries of a list were left out."""
    located: list[str | int] = []
    for place, part in enumerate(path):
        if isinstance(part, int):
            for index in sorted(gone.get(path[:place], ())):
                part += index <= part
        located.append(part)
    return tuple(located)


def _without(raw: Raw, paths: Iterable[Path]) -> Raw:
    """A copy without the values at `paths`, the last ones first, so that indices stay right."""
    order = sorted(paths, key=lambda path: [(isinstance(part, int), part) for part in path], reverse=True)
    for path in order:
        raw = _removed(raw, path)
    return raw


def _removed(raw: Any, path: Path) -> Any:
    copy: Any = raw.copy() if isinstance(raw, dict) else list(raw)
    if len(path) == 1:
        del copy[path[0]]
        return copy
    copy[path[0]] = _removed(copy[path[0]], path[1:])
    if path[0] == "steps" and len(path) == 2:
        copy["steps"] = _renumbered(copy)
    return copy


def _renumbered(record: Raw) -> list[Any]:
    """The steps of one of the project's own records, whose ids must count on.

    Raises:
        DataError: transitions name the steps by their number.
    """
    if record.get("explicit_transitions"):
        raise DataError("a step cannot be used, and transitions count the steps", field="steps")
    return [
        step | {"id": f"S{number}"} if isinstance(step, dict) and re.fullmatch(r"S\d+", str(step.get("id"))) else step
        for number, step in enumerate(record["steps"], 1)
    ]
