"""Recipe texts as people, language models and PDF files write them."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prospect.dialogue.recipe import read_recipe

CASES = {
    "one line a step": ("Tea\n1. Boil water.\n2) Add a bag.\n", ("Boil water.", "Add a bag.")),
    "wrapped lines": ("1. Boil the\nwater.\n2. Add\n   a bag\n   of tea.", ("Boil the water.", "Add a bag of tea.")),
    "a word cut at its hyphen": (
        "1. Leave 1/2-\ninch free.\n2. Roll - then\ncut.",
        ("Leave 1/2-inch free.", "Roll - then cut."),
    ),
    "a number that does not count on": (
        "1. Heat to 195-\n205. Let it cool.\n2. Pour.",
        ("Heat to 195-205. Let it cool.", "Pour."),
    ),
    "a year at a line's start": (
        "1. Open the wine of\n1999. Pour it.\n2. Drink.",
        ("Open the wine of 1999. Pour it.", "Drink."),
    ),
    "blank lines between": ("1. Boil.\n\n2. Pour.\n\n3. Drink.", ("Boil.", "Pour.", "Drink.")),
    "notes behind": ("1. Boil.\n2. Pour.\n\nEnjoy!\n\nNotes:\n1. a\n2. b\n3. c", ("Boil.", "Pour.")),
    "ingredients before": ("Ingredients\n1. flour\n2. sugar\n3. salt\nSteps:\n1. Mix.\n2. Bake.", ("Mix.", "Bake.")),
    "a list inside": ("1. Prepare:\n   1. onions\n   2. leek\n2. Fry.", ("Prepare: 1. onions 2. leek", "Fry.")),
    "bullets inside": ("1. Prepare:\n- onions\n- leek\n2. Fry.", ("Prepare: - onions - leek", "Fry.")),
    "more than nine": ("\n".join(f"{n:>2}. s{n}" for n in range(1, 12)), tuple(f"s{n}" for n in range(1, 12))),
    "cut off": ("1. Boil.\n2. Pour.\n3", ("Boil.", "Pour.")),
    "quantities": ("2 Tablespoons flour\n1 8-inch tortilla\n12 oz water", ()),
    "not from one": ("8. Combine.\n9. Serve.", ()),
    "nothing": ("", ()),
}


@pytest.mark.parametrize(("text", "steps"), CASES.values(), ids=CASES)
def test_steps_are_whole_and_count_on(text: str, steps: tuple[str, ...]) -> None:
    assert read_recipe(text).steps == steps


@pytest.mark.parametrize(
    ("name", "count", "last"),
    [
        (
            "cake",
            12,
            "in a circle around the base of the cake.",
        ),
        (
            "coffee",
            8,
            "Discard the paper filter and coffee grounds.",
        ),
        ("pinwheel", 12, "Place the pinwheels on a plate."),
    ],
)
def test_wtags_steps_end_where_their_sentences_end(shared_data: Path, name: str, count: int, last: str) -> None:
    recipe = read_recipe((shared_data / "wtag" / f"recipe_{name}.txt").read_text(encoding="utf-8"))
    assert len(recipe.steps) == count
    assert recipe.steps[-1].endswith(last)
    assert all(step.endswith(".") for step in recipe.steps)
    assert "Ingredients" in recipe.rest


@given(st.text(alphabet="12. ab\n-)", max_size=60))
def test_no_line_is_lost(text: str) -> None:
    recipe = read_recipe(text)
    said = " ".join((*recipe.steps, *recipe.rest))
    assert all(word in said for word in ("a", "b") if word in text)


@given(st.lists(st.text(alphabet="abc -,", min_size=1).map(lambda t: " ".join(t.split())).filter(bool), min_size=1))
def test_numbered_lines_read_back(names: list[str]) -> None:
    text = "\n".join(["Tea", *(f"{number}. {name}" for number, name in enumerate(names, 1))])
    assert read_recipe(text).steps == tuple(names)
    assert read_recipe(text).rest == ("Tea",)


@pytest.mark.timeout(10)
@pytest.mark.parametrize("line", ["!" * 40_000 + "a", "1. " + " " * 40_000, "1" * 40_000, " " * 40_000 + "1"])
def test_no_line_takes_quadratic_time(line: str):
    """A client may send such a recipe; it took half a minute."""
    read_recipe(f"1. Boil.\n\n{line}")
