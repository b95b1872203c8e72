"""Every kind of pydantic's findings as one sentence on one field."""

from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from prospect.messages import Mistake, first_line, first_mistake, shown, unknown, without_passwords


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Cup(Strict):
    name: Literal["cup"] = "cup"
    size: int = Field(default=1, ge=1)
    text: str = Field(default="", max_length=3, pattern="^[a-z]*$")


class Pot(Strict):
    name: Literal["pot"] = "pot"
    lid: bool


class Shelf(Strict):
    things: list[Annotated[Cup | Pot, Field(discriminator="name")]] = []
    weight: float | list[int] = 0.0
    order: tuple[int, int] = (1, 2)
    best: Cup = Cup()
    owner: str = "us"

    @field_validator("owner")
    @classmethod
    def _owned(cls, owner: str) -> str:
        if owner.startswith("no"):
            raise ValueError(f"must not begin with {owner[:2]}." if owner == "nobody" else "Nobody owns it")
        return owner

    @model_validator(mode="after")
    def _ordered(self) -> "Shelf":
        if self.order[0] > self.order[1]:
            raise ValueError(f"order {list(self.order)} must rise")
        return self


def mistake(values: Any, named: bool = True) -> Mistake:
    with pytest.raises(ValidationError) as caught:
        Shelf.model_validate(values)
    return first_mistake(caught.value.errors(include_url=False), values, Shelf if named else None)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"best": {"size": 0}}, "best.size (0) must be greater than or equal to 1"),
        ({"best": {"text": "long"}}, "best.text ('long') must have at most 3 characters"),
        ({"best": {"text": "A"}}, "best.text ('A') must match pattern '^[a-z]*$'"),
        ({"best": {"size": "x"}}, "best.size ('x') must be an integer"),
        ({"best": {"size": 1.5}}, "best.size (1.5) must be an integer"),
        ({"owner": None}, "owner (null) must be a string"),
        ({"owner": True}, "owner (true) must be a string"),
        ({"best": 3}, "best (3) must be an object"),
        ({"things": "cup"}, "things ('cup') must be a list"),
        ({"owner": 10**80}, f"owner ({'1' + '0' * 56}...) must be a string"),
        ({"best": {"sice": 1}}, "best.sice: unknown field (did you mean `size`?); there are name, size, text"),
        ({"colour": 1}, "colour: unknown field; there are best, order, owner, things, weight"),
        ({"things": [{"name": "pot"}]}, "things.0.lid: is missing"),
        ({"order": [1]}, "order.1: is missing"),
        ({"owner": "nobody"}, "owner ('nobody') must not begin with no"),
        ({"owner": "none"}, "owner: nobody owns it"),
        ({"order": [2, 1]}, "SHELF: order [2, 1] must rise"),
        ([], "SHELF ([]) must be an object"),
        ({"owner": 1, "best": {"size": "x", "text": "A"}}, "best.size ('x') must be an integer (2 more mistakes)"),
    ],
)  # fmt: skip
def test_a_finding_is_one_sentence(values: Any, sentence: str) -> None:
    found = mistake(values)
    assert found.about(found.field or "SHELF") == sentence


@pytest.mark.parametrize(
    ("thing", "sentence"),
    [
        ({"name": "pot", "lid": 3}, "things.0.lid (3) must be true or false"),
        ({"name": "cup", "lid": 3}, "things.0.lid: unknown field"),
        ({"name": "cup", "cup": 3}, "things.0.cup: unknown field"),
        ({"name": "pan"}, "things.0.name ('pan') must be one of 'cup', 'pot'"),
        ({"size": 1}, "things.0.name: is missing"),
        (3, "things.0 (3) must be an object"),
    ],
)
def test_the_members_of_a_union_stand_in_no_path(thing: Any, sentence: str) -> None:
    found = mistake({"things": [thing]}, named=False)
    assert found.about(found.field) == sentence


@pytest.mark.parametrize("weight", ["heavy", ["x"]])
def test_what_fits_no_member_of_a_union_is_one_mistake(weight: Any) -> None:
    found = mistake({"weight": weight})
    assert (found.field, found.others) == ("weight", 0 if weight == "heavy" else 1)


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (Mistake("time", "must be a number", "'x'"), "'x' must be a number"),
        (Mistake("time", "is missing"), "is missing"),
        (Mistake("time", "is missing", others=1), "is missing (1 more mistake)"),
    ],
)
def test_a_reason_stands_behind_its_field(found: Mistake, reason: str) -> None:
    assert found.reason == reason


def test_a_path_stays_whole_where_the_values_are_another_model_s() -> None:
    with pytest.raises(ValidationError) as caught:
        Cup.model_validate({"size": 0})
    findings = caught.value.errors(include_url=False)
    assert first_mistake(findings, {"things": []}).field == first_mistake(findings).field == "size"


@pytest.mark.parametrize(
    ("value", "text"),
    [((), "[]"), ((1, None), "[1, null]"), (["a", (True,)], "['a', [true]]"), (Path("/data"), "'/data'")],
)
def test_a_value_is_shown_as_it_is_typed(value: Any, text: str) -> None:
    assert shown(value) == text


def test_what_is_unknown_is_named_with_its_near_misses() -> None:
    said = unknown("job", "trian", ["train", "eval"])
    assert said == "Unknown job `trian` (did you mean `train`?); there are eval, train."
    said = unknown("video", "x", "abc", of="preview", most=2)
    assert said == "Unknown video `x` of `preview`; there are a, b and 1 more."


@pytest.mark.parametrize(
    ("error", "line"),
    [(OSError(), "OSError"), (ValueError("  \n"), "ValueError"), (RuntimeError("no disk.\nat 0x1"), "no disk")],
)
def test_an_error_without_a_message_is_called_by_its_name(error: Exception, line: str) -> None:
    assert first_line(error) == line


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("store: postgresql://me:secret@host/db", "store: postgresql://me:***@host/db"),
        ("a://x:y@z b://:pass@w", "a://x:***@z b://:***@w"),
        ("postgresql+psycopg://me:se%40c@ret@host:5432/db", "postgresql+psycopg://me:***@host:5432/db"),
        ("http://127.0.0.1:8000/v1", "http://127.0.0.1:8000/v1"),
        ("postgresql://me@host:5432/db?x=a@b", "postgresql://me@host:5432/db?x=a@b"),
        ("models:/prospect-dst@champion", "models:/prospect-dst@champion"),
    ],
)
def test_the_passwords_of_urls_are_hidden(text: str, shown: str) -> None:
    assert without_passwords(text) == shown
