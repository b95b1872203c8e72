"""The one renderer of mistakes: what pydantic finds in somebody's values, as one sentence about one field."""

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from pydantic import BaseModel

from prospect.settings import nested_models

Finding = Mapping[str, Any]
"""One entry of `ValidationError.errors`."""

_KINDS = {
    "model_type": "an object", "model_attributes_type": "an object", "dict_type": "an object",
    "dataclass_type": "an object", "tuple_type": "a list", "list_type": "a list", "string_type": "a string",
    "int_type": "an integer", "int_parsing": "an integer", "int_from_float": "an integer", "float_type": "a number",
    "float_parsing": "a number", "bool_type": "true or false", "bool_parsing": "true or false",
}  # fmt: skip
"""Pydantic's type of a finding -> what the value has to be; pydantic names Python's classes."""

_MAX_VALUE = 60
"""Characters of a value that a sentence repeats."""

_UNKNOWN = object()
_PASSWORD = re.compile(r"(\w://[^\s:/@]*:)[^\s/]+@")


@dataclass(frozen=True)
class Mistake:
    """One wrong field."""

    field: str
    """Dotted path; empty where the values as a whole are wrong."""
    rule: str
    """What the field breaks: `must be ...`, `is missing`, `unknown field`, or a validator's own words."""
    value: str = ""
    """The value given, as its user would write it; empty where it explains nothing."""
    others: int = 0
    """Further wrong fields."""

    def about(self, subject: str) -> str:
        """The sentence on `subject`, which names the field, without a full stop: `SUBJECT (VALUE) must ...`."""
        value = f" ({self.value})" if self.value else ""
        return f"{subject}{value}{' ' if value and self.rule.startswith('must ') else ': '}{self.rule}{self._rest}"

    @property
    def reason(self) -> str:
        """The sentence where the field already stands in front of it: `VALUE must ...`."""
        value = self.value and f"{self.value}{' ' if self.rule.startswith('must ') else ': '}"
        return f"{value}{self.rule}{self._rest}"

    @property
    def _rest(self) -> str:
        return f" ({self.others} more mistake{'s' if self.others > 1 else ''})" if self.others else ""


def first_mistake(findings: Sequence[Finding], values: Any = _UNKNOWN, model: type[BaseModel] | None = None) -> Mistake:
    """The first of pydantic's findings.

    Args:
        findings: from `ValidationError.errors`.
        values: what was validated, to tell its keys from the names that pydantic adds for members of a union.
        model: the class that `values` were meant for, to name its keys where one is unknown.
    """
    first = findings[0]
    path = _path(first, values)
    others = len({_path(finding, values) for finding in findings} - {path})
    field, rule, value = ".".join(map(str, path)), _rule(first), ""
    if first["type"] == "extra_forbidden" and model is not None:
        known = sorted(_model_at(path[:-1], model, values).model_fields)
        rule += f"{_near_misses(str(path[-1]), known)}; there are {', '.join(known)}"
    elif first["type"] == "union_tag_invalid":
        value = repr(first["ctx"]["tag"])
    elif _repeats_value(first, rule):
        value = shown(first["input"])
    return Mistake(field, rule, value if len(value) <= _MAX_VALUE else f"{value[: _MAX_VALUE - 3]}...", others)


def unknown(kind: str, name: str, known: Iterable[str], of: str = "", most: int | None = None) -> str:
    """What is unknown, what was probably meant, and what there is, of that `most` names."""
    known = sorted(known)
    where = f" of `{of}`" if of else ""
    more = "" if most is None or len(known) <= most else f" and {len(known) - most:,} more"
    return f"Unknown {kind} `{name}`{where}{_near_misses(name, known)}; there are {', '.join(known[:most])}{more}."


def shown(value: Any) -> str:
    """A value as a user would write it."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(shown, value))}]"
    if isinstance(value, PurePath):
        return repr(str(value))
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)


def first_line(error: BaseException) -> str:
    """A library's message up to the end of its first line, without the full stop; where it says nothing, its name."""
    return str(error).strip().split("\n", 1)[0].rstrip(".") or type(error).__name__


def without_passwords(text: str) -> str:
    """A text in which the passwords of URLs are three stars."""
    return _PASSWORD.sub(r"\1***@", text)


def _near_misses(name: str, known: Sequence[str]) -> str:
    initials = [each for each in known if "".join(word[:1] for word in each.split("_")) == name]  # lr: learning_rate
    close = initials or difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f" (did you mean {' or '.join(f'`{match}`' for match in close)}?)" if close else ""


def _rule(finding: Finding) -> str:
    kind, text = finding["type"], finding["msg"].rstrip(".")
    match kind:
        case "missing" | "union_tag_not_found":
            return "is missing"
        case "extra_forbidden":
            return "unknown field"
        case "json_invalid":
            return f"is not JSON: {finding['ctx']['error']}"
        case "union_tag_invalid":
            return f"must be one of {finding['ctx']['expected_tags']}"
        case "value_error":
            own = text.removeprefix("Value error, ")
            return own if own[:2].isupper() else f"{own[:1].lower()}{own[1:]}"
    if kind in _KINDS:
        return f"must be {_KINDS[kind]}"
    asked = re.fullmatch(r"\w+(?: \w+)? should (.+)", text, re.DOTALL)  # "Input should be less than 1"
    return f"must {asked[1]}" if asked else f"{text[:1].lower()}{text[1:]}"


def _repeats_value(finding: Finding, rule: str) -> bool:
    """Whether the value explains the mistake; a validator's own words name it themselves."""
    if finding["type"] in ("missing", "extra_forbidden", "json_invalid", "union_tag_not_found"):
        return False
    return finding["type"] != "value_error" or (rule.startswith("must ") and not isinstance(finding["input"], dict))


def _path(finding: Finding, values: Any) -> tuple[str | int, ...]:
    """The keys and indices of a finding, without the names that pydantic adds for the members of a union.

    A member's name is left out where `values` lack it and hold the part after it; other parts stay.
    """
    kind, given = finding["type"], finding["loc"]
    path: list[str | int] = []
    for place, part in enumerate(given if kind != "json_invalid" else ()):
        following = given[place + 1 :]
        if _holds(values, part):
            values = values[part]
        elif values is not _UNKNOWN and not (kind == "missing" and not following):
            scalar = not isinstance(values, dict | list | tuple)
            named_next = following and (_holds(values, following[0]) or (kind == "missing" and len(following) == 1))
            if scalar or named_next or (not following and finding["input"] == values):
                continue
            values = _UNKNOWN
        path.append(part)
    if kind.startswith("union_tag"):
        path.append(finding["ctx"]["discriminator"].strip("'"))
    return tuple(path)


def _holds(values: Any, part: str | int) -> bool:
    if isinstance(values, dict):
        return part in values
    return isinstance(values, list | tuple) and isinstance(part, int) and part < len(values)


def _model_at(path: Iterable[str | int], model: type[BaseModel], values: Any) -> type[BaseModel]:
    """The class that holds the keys below `path`; of a union, the member that `name` chooses."""
    for key in filter(lambda part: isinstance(part, str), path):
        values = values.get(key, {})
        members = list(nested_models(model.model_fields[str(key)].annotation))
        chosen = (
            m for m in members if "name" in m.model_fields and m.model_fields["name"].default == values.get("name")
        )
        model = next(chosen, members[0])
    return model
