"""The fields that a reader uses, and a count of those that it ignores."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, get_args

from pydantic import AliasChoices, BaseModel

from prospect.data.sources.files import RepeatedKeys
from prospect.data.sources.quarantine import shorten


@dataclass(frozen=True)
class IgnoredField:
    """A field of the source's files that no reader uses."""

    dataset: str
    name: str
    """Dotted path without indices, such as `turns.end`."""
    count: int
    example: str
    """Its first value, shortened."""

    def __str__(self) -> str:
        return f"`{self.name}` ({self.count:,} in {self.dataset or 'an unknown dataset'}, such as {self.example})"


class IgnoredFields:
    """Counts fields that no reader uses."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, str]] = Counter()
        self._examples: dict[tuple[str, str], str] = {}

    def add(self, dataset: str, ignored: Iterable[tuple[str, Any]]) -> None:
        """Count the (dotted path, value) of one element."""
        for name, value in ignored:
            key = dataset, name
            self._counts[key] += 1
            if key not in self._examples:
                self._examples[key] = shorten(value)

    def counted(self) -> list[IgnoredField]:
        """By data set, the most frequent first."""
        order = sorted(self._counts, key=lambda key: (key[0], -self._counts[key]))
        return [IgnoredField(*key, self._counts[key], self._examples[key]) for key in order]


@dataclass(frozen=True)
class _Plan:
    """What to do with an object that has certain keys."""

    ignored: tuple[str, ...]
    inside: tuple[tuple[str, "Fields"], ...]


@dataclass(frozen=True)
class Fields:
    """The fields of an object, or of every object in a list, that a reader uses."""

    names: Mapping[str, str]
    """Field by key: synonyms have the same field, of which the first in this order is used."""
    inside: Mapping[str, "Fields"] = field(default_factory=dict)
    """The fields of nested objects, by key."""
    refused: bool = False
    """Whether unknown fields are an error anyway, so that they are not counted here."""
    _plans: dict[tuple[str, ...], _Plan] = field(default_factory=dict, compare=False)

    def ignored(self, raw: Any, path: str = "") -> Iterator[tuple[str, Any]]:
        """(dotted path, value) of every field of `raw` that is not used."""
        for place in raw if isinstance(raw, list) else (raw,):
            if isinstance(place, dict):
                plan = self._plan(tuple(place))
                for key in plan.ignored:
                    yield path + key, place[key]
                for key, fields in plan.inside:
                    if place[key]:
                        yield from fields.ignored(place[key], f"{path}{key}.")

    def repeated(self, raw: Any, path: str = "") -> Iterator[tuple[str, Any]]:
        """(dotted path, value) of every later value of a key that an object has twice."""
        if isinstance(raw, list):
            for index, item in enumerate(raw):
                yield from self.repeated(item, f"{path}{index}.")
        elif isinstance(raw, dict):
            if isinstance(raw, RepeatedKeys):
                yield from ((path + key, value) for key, value in raw.later)
            for key, value in raw.items():
                yield from self.repeated(value, f"{path}{key}.")

    def _plan(self, keys: tuple[str, ...]) -> _Plan:
        if keys not in self._plans:
            first: dict[str, str] = {}
            for key, name in self.names.items():
                if key in keys:
                    first.setdefault(name, key)
            used = set(first.values())
            ignored = () if self.refused else tuple(key for key in keys if key not in used)
            self._plans[keys] = _Plan(ignored, tuple((key, self.inside[key]) for key in keys if key in self.inside))
        return self._plans[keys]


def fields_of(*models: type[BaseModel], **more: "Fields | None") -> Fields:
    """The fields of schemas (together, where an object may follow either), and further ones by name."""
    names: dict[str, str] = {}
    inside: dict[str, Fields] = {}
    for model in models:
        for name, info in model.model_fields.items():
            keys = [name] if info.validation_alias is None else _keys(info.validation_alias)
            nested = tuple(_models(info.annotation))
            names |= dict.fromkeys(keys, name)
            inside |= dict.fromkeys(keys, fields_of(*nested)) if nested else {}
    names |= {name: name for name in more}
    inside |= {name: fields for name, fields in more.items() if fields is not None}
    return Fields(
        names, inside, refused=bool(models) and all(model.model_config.get("extra") == "forbid" for model in models)
    )


def _keys(alias: Any) -> list[str]:
    return [str(choice) for choice in alias.choices] if isinstance(alias, AliasChoices) else [str(alias)]


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models(part)
