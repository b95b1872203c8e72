"""Overrides as a user types them: checked against the job's sections, and read by the type of their field."""

import re
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from pydantic import BaseModel

from prospect.earlier import GONE
from prospect.errors import ConfigError
from prospect.messages import unknown
from prospect.settings import nested_models

Sections = Mapping[str, Sequence[str]]
"""The sections of a job, each with its options."""


class Text(NamedTuple):
    """The value of a field that holds text: its characters as they were typed."""

    key: str
    value: str | list[str]


_OVERRIDE = re.compile(r"([A-Za-z_]\w*(?:\.\w+)*)=(.*)", re.DOTALL)
_ITEM = r"\s*('(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"|[^,'\"\[\]{}]*[^,'\"\[\]{}\s])\s*"
_LIST = re.compile(rf"\[(?:{_ITEM}(?:,{_ITEM})*)?\]|\[\s*\]")


def read_override(override: str, schema: type[BaseModel]) -> str | Text:
    """An override as Hydra takes it, or the text of a field that holds text.

    Hydra reads a value by its looks: `1_7` is the number 17, and `/data/Videos (1)` an error. A field that holds text
    takes what was typed. Two looks keep their meaning: `null`, and a value in quotes, which is what stands inside.

    Raises:
        ConfigError: it is not key=value.
    """
    if typed := _OVERRIDE.fullmatch(override):
        key, value = typed.groups()
        kinds = list(_annotations(schema, key))
        if kinds and value != "null" and all(map(_is_text, kinds)):
            return Text(key, _unquoted(value))
        if any(map(_is_list_of_text, kinds)) and _LIST.fullmatch(value):
            items = re.findall(_ITEM, value[1:-1])
            if "null" not in items:
                return Text(key, [_unquoted(item) for item in items])
    _parsed(override)
    return override


def check_section(
    job: str, override: str, used: Sections, schema: type[BaseModel], others: Callable[[], Container[str]]
) -> bool:
    """Check that the section of an override is one of the job's, and its option one of the section's.

    Args:
        job: its name.
        override: `section=option` or `section.key=value`.
        used: the sections of the job.
        schema: the class that has them.
        others: gives the sections of all jobs; called for an unknown section.

    Returns:
        Whether it chooses an option.

    Raises:
        ConfigError: one sentence that names what there is.
    """
    path = override.partition("=")[0]
    section, _, key = path.partition(".")
    if path in GONE:
        raise ConfigError(f"`{path}` was removed: {GONE[path]}.", field=path)
    if section not in used:
        if section in others():
            raise ConfigError(f"The job {job} does not use `{section}`; it uses {', '.join(used)}.", field=section)
        if meant := [known for known in _keys(schema, used) if _is_short_for(path, known)]:
            suggested = " or ".join(f"`{known}`" for known in meant[:4])  # without the value, which may be a secret
            advice = "a key stands behind its section, as SECTION.KEY=value"
            raise ConfigError(f"Unknown section `{section}` (did you mean {suggested}?); {advice}.", field=section)
        raise ConfigError(unknown("section", section, used), field=section)
    field = schema.model_fields.get(section)
    if key or (field is not None and not any(nested_models(field.annotation))):
        return False
    if not used[section]:
        raise ConfigError(f"`{section}` has no options to choose from: set its keys, as {section}.KEY=value.")
    chosen = str(_parsed(override).value())
    if chosen not in used[section]:
        raise ConfigError(unknown("option", chosen, used[section], of=section), field=section)
    return True


def _parsed(override: str) -> Override:
    """The override by Hydra's grammar, of which only key=value is ours."""
    try:
        parsed = OverridesParser.create().parse_override(override)
    except HydraException as error:
        expected = "expected key=value, for example storage.root=/data"
        raise ConfigError(f"`{override}` is not a valid override; {expected}.") from error
    if parsed.type is None or parsed.type.name != "CHANGE" or parsed.is_sweep_override():
        expected = "expected key=value, a list as key=[a,b], with nothing before it"
        raise ConfigError(f"`{override}` is not a valid override; {expected}.")
    return parsed


def _unquoted(value: str) -> str:
    """What stands in a value's quotes, or the value, where it has none."""
    if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
        try:
            inside = OverridesParser.create().parse_override(f"key={value}").value()
        except HydraException:
            return value
        return inside if isinstance(inside, str) else value
    return value


def _annotations(schema: type[BaseModel], key: str) -> Iterator[Any]:
    """The types of the field `key`: several where a union's members each have such a field."""
    *path, last = key.split(".")
    models = [schema]
    for part in path:
        found = (model.model_fields[part].annotation for model in models if part in model.model_fields)
        models = [nested for annotation in found for nested in nested_models(annotation)]
    return (model.model_fields[last].annotation for model in models if last in model.model_fields)


def _is_text(annotation: Any) -> bool:
    origin, members = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _is_text(members[0])
    if origin in (Union, UnionType):
        return all(member is NoneType or _is_text(member) for member in members)
    if origin is Literal:
        return all(isinstance(member, str) for member in members)
    return isinstance(annotation, type) and issubclass(annotation, str | Path)


def _is_list_of_text(annotation: Any) -> bool:
    origin, members = get_origin(annotation), get_args(annotation)
    if origin in (Annotated, Union, UnionType):
        return any(map(_is_list_of_text, members))
    return origin in (tuple, list) and all(member is Ellipsis or _is_text(member) for member in members)


def _keys(schema: type[BaseModel], sections: Sections) -> Iterator[str]:
    """Every key of a job, dotted."""
    for name, field in schema.model_fields.items():
        if name in sections or not sections:
            nested = list(nested_models(field.annotation))
            yield from (name,) if not nested else (f"{name}.{key}" for model in nested for key in _keys(model, {}))


def _is_short_for(path: str, key: str) -> bool:
    """Whether `path` is the end of `key`, or the initials of its last word: `lr` of `training.learning_rate`."""
    initials = "".join(word[:1] for word in key.rpartition(".")[2].split("_"))
    return key.endswith(f".{path}") or (len(path) > 1 and path == initials)
