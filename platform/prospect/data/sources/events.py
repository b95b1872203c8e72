"""Leaves out the events of a record that cannot be used, so that one bad value does not cost the record."""

import re
from collections.abc import Callable, Iterable
from typing import Any

from pydantic import ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

from prospect.dialogue.schema import Dialogue
from prospect.errors import DataError

Raw = dict[str, Any]
Path = tuple[str | int, ...]
Problem = tuple[Path, ValidationError]
"""Where an event or value stands in the file's record, and what is wrong with it."""

IDENTITY = frozenset({"dataset", "dialogue_id", "split", "video_id", "video_uid", "video_name"})
"""Fields without which nobody knows what a record is about; with a wrong one it is not used."""


def convert_usable(convert: Callable[[Raw], Dialogue], raw: Raw) -> tuple[Dialogue, list[Problem]]:
    """Convert a record without the events and optional values that do not validate.

    Args:
        convert: raises ValidationError with locations in the raw record.
        raw: the record; it is not changed.

    Returns:
        The dialogue, and what was left out.

    Raises:
        ValidationError, DataError: the record cannot be used even without them.
    """
    problems: list[Problem] = []
    gone: dict[Path, set[int]] = {}
    while True:
        try:
            return convert(raw), problems
        except ValidationError as error:
            found = _removable(raw, error, problems)
        problems += [(_in_file(_location(finding), gone), finding) for finding in found.values() if finding]
        entries = [(path[:-1], _in_file(path, gone)[-1]) for path in found if isinstance(path[-1], int)]
        for parent, index in entries:
            gone.setdefault(parent, set()).add(int(index))
        raw = _without(raw, found)


def _removable(raw: Raw, error: ValidationError, earlier: list[Problem]) -> dict[Path, ValidationError | None]:
    """The paths of events and optional values that must be left out, each with the first finding about it.

    A null counts as absent, with nothing to report unless the field is required.

    Raises:
        ValidationError: a finding is about the record itself.
    """
    found: dict[Path, ValidationError | None] = {}
    for details in error.errors(include_url=False):
        path, location = _path(raw, details["loc"])
        if details["input"] is None and path and path == location:
            found[path] = None
            continue
        finding = _single(error.title, details, location)
        index = next((place for place in range(len(path) - 1, -1, -1) if isinstance(path[place], int)), None)
        if index is None and not _optional(path, details["type"]):
            raise next((cause for place, cause in earlier if place == location), finding)  # left out, but required
        found.setdefault(path if index is None else path[: index + 1], finding)
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


def _single(title: str, details: Any, location: Path) -> ValidationError:
    """One finding as an error of its own."""
    kind = details["type"]
    message = PydanticCustomError(kind, "{message}", {"message": details["msg"].removeprefix("Value error, ")})
    finding = InitErrorDetails(type="missing" if kind == "missing" else message, loc=location, input=details["input"])
    return ValidationError.from_exception_data(title, [finding])


def _location(finding: ValidationError) -> Path:
    return finding.errors(include_url=False)[0]["loc"]


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
