"""The base of every configuration section. A module owns its section, and the section holds the defaults."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict

S = TypeVar("S", bound=BaseModel)

Place = Annotated[str, AfterValidator(os.path.expanduser)]
"""A path, in which `~` is the home folder, or what else leads to something: a URL, a name."""

LocalPath = Annotated[Path, AfterValidator(Path.expanduser)]
"""A path on this machine, in which `~` is the home folder."""


class Settings(BaseModel):
    """A validated, immutable group of settings; unknown keys are refused. Attribute docstrings document fields."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=())


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def is_given(settings: BaseModel, name: str) -> bool:
    """Whether the setting of this dotted name was set, and does not have its default by silence."""
    section, _, rest = name.partition(".")
    return section in settings.model_fields_set and (not rest or is_given(getattr(settings, section), rest))


def with_setting(settings: S, name: str, value: Any) -> S:
    """`settings` with another value of the setting of this dotted name."""
    section, _, rest = name.partition(".")
    return settings.model_copy(
        update={section: with_setting(getattr(settings, section), rest, value) if rest else value}
    )


def nested_models(annotation: Any) -> Iterator[type[BaseModel]]:
    """The model classes in a type: itself, or the members of a union."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from nested_models(part)
