"""Mistakes in what somebody gave us, as one sentence that names the field, the value and what is allowed."""

import difflib
from collections.abc import Iterable, Iterator
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails


def describe(error: ValidationError, values: Any, model: type[BaseModel]) -> tuple[str, str]:
    """The first of pydantic's findings in `values`, which were meant for `model`, and how many there are more.

    Returns:
        (dotted path of the field, sentence).
    """
    first, *others = error.errors(include_url=False)
    rest = f" ({len(others)} more after it)" if others else ""
    path = _path(first, values)
    return path, f"{_sentence(first, path, model, values)[:-1]}{rest}."


def unknown(kind: str, name: str, known: Iterable[str], of: str = "", most: int | None = None) -> str:
    """What is unknown, what was probably meant, and what there is, of that `most` names."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    meant = f" (did you mean {' or '.join(f'`{match}`' for match in close)}?)" if close else ""
    where = f" of `{of}`" if of else ""
    more = "" if most is None or len(known) <= most else f" and {len(known) - most:,} more"
    return f"Unknown {kind} `{name}`{where}{meant}; there are {', '.join(known[:most])}{more}."


def shown(value: Any) -> str:
    """A value as a user would write it."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)


def first_line(error: BaseException) -> str:
    """A library's message up to the end of its first line, without the full stop; where it says nothing, its name."""
    return str(error).strip().split("\n", 1)[0].rstrip(".") or type(error).__name__


def _sentence(finding: ErrorDetails, path: str, model: type[BaseModel], values: Any) -> str:
    parent, _, name = path.rpartition(".")
    if finding["type"] == "extra_forbidden":
        return unknown("key", name, _model_at(parent, model, values).model_fields, of=parent)
    if finding["type"] == "missing":
        return f"`{path}` must be given."
    allowed = finding["msg"].removeprefix("Value error, ").rstrip(".")
    if finding["type"] == "value_error" and isinstance(finding["input"], dict):  # keys that do not go together
        return f"`{path}` cannot work: {allowed}."
    return f"`{path}` cannot be {shown(finding['input'])}: {allowed[:1].lower()}{allowed[1:]}."


def _path(finding: ErrorDetails, values: Any) -> str:
    """The dotted key of a finding, without the names that pydantic adds for the members of a union."""
    path: list[str] = []
    for part in finding["loc"]:
        inside = part in values if isinstance(values, dict) else isinstance(values, list) and isinstance(part, int)
        if inside:
            values = values[part]
        if inside or (finding["type"] == "missing" and part == finding["loc"][-1]):
            path.append(str(part))
    return ".".join(path)


def _model_at(path: str, model: type[BaseModel], values: Any) -> type[BaseModel]:
    """The class that holds the keys below the dotted `path`; of a union, the member that `name` chooses."""
    for key in filter(None, path.split(".")):
        values = values.get(key, {})
        members = list(_members(model.model_fields[key].annotation))
        chosen = (
            m for m in members if "name" in m.model_fields and m.model_fields["name"].default == values.get("name")
        )
        model = next(chosen, members[0])
    return model


def _members(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _members(part)
