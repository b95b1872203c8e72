"""Reads the steps of a numbered recipe text."""

import re
from dataclasses import dataclass, field

# Possessive quantifiers (`*+`) never give back what they took, so that no line takes quadratic time.
_STEP = re.compile(r"^(?P<indent>\s*+)(?P<number>\d{1,6}+)(?:[.)]\s++(?P<text>.*\S)|[.)]?+)\s*$")
"""`1. Boil water.` or `1) Boil water.`; a number alone, as of a last step that was cut off, has no text."""

_HEADING = re.compile(
    r"^\W*+(?:(?P<steps>steps?|instructions?|directions?|method|procedure)"
    r"|(?P<other>ingredients|materials|tools|equipment|notes?|tips?|variations?))?\W*+$",
    re.IGNORECASE,
)
_NESTED = 2
"""Columns to the right of the first step from which on a number belongs to a list inside a step."""


@dataclass(frozen=True)
class Recipe:
    """A recipe text, taken apart."""

    steps: tuple[str, ...] = ()
    """Names of the steps, without their numbers."""
    rest: tuple[str, ...] = ()
    """Lines outside of the steps, without blank ones: title, ingredients, notes."""


@dataclass
class _List:
    """Lines that count 1, 2, 3, ..., each with the lines that continue it."""

    indent: int
    rank: int
    """1 below a heading such as `Steps`, -1 below one such as `Ingredients`, else 0."""
    steps: list[str] = field(default_factory=list)
    places: set[int] = field(default_factory=set)
    """The numbers of its lines."""

    def counts_on(self, match: re.Match[str]) -> bool:
        return int(match["number"]) == len(self.steps) + 1 and _columns(match) < self.indent + _NESTED

    def add(self, place: int, text: str | None) -> None:
        if text:
            self.steps.append(text)
            self.places.add(place)

    def go_on(self, place: int, text: str) -> None:
        hyphenated = re.search(r"\w-$", self.steps[-1])
        self.steps[-1] += text if hyphenated else f" {text}"
        self.places.add(place)


def read_recipe(knowledge: str) -> Recipe:
    """The steps of a recipe text, and its other lines.

    Steps count 1, 2, 3; the lines below a step, up to a blank one or a heading, continue it. Of several such lists
    the one below a heading such as `Steps` is the recipe, else the longest that is not below `Ingredients` or `Notes`.
    """
    lines = knowledge.splitlines()
    lists = _lists(lines)
    if not lists:
        return Recipe((), tuple(line for line in lines if line.strip()))
    chosen = max(lists, key=lambda found: (found.rank, len(found.steps)))
    rest = (line for place, line in enumerate(lines) if line.strip() and place not in chosen.places)
    return Recipe(tuple(chosen.steps), tuple(rest))


def _lists(lines: list[str]) -> list[_List]:
    lists: list[_List] = []
    apart, rank = True, 0  # whether the line before ends a list; the rank of the next list
    for place, line in enumerate(lines):
        match, text = _STEP.match(line), line.strip()
        heading = _HEADING.match(line)
        if not text or heading:
            apart = True
            if heading and text:
                rank = bool(heading["steps"]) - bool(heading["other"])
            continue
        if match and lists and lists[-1].counts_on(match):
            lists[-1].add(place, match["text"])
            apart = apart and not match["text"]
        elif match and match["text"] and int(match["number"]) == 1 and apart:
            lists.append(_List(_columns(match), rank))
            lists[-1].add(place, match["text"])
            apart, rank = False, 0
        elif lists and not apart:
            lists[-1].go_on(place, text)
    return lists


def _columns(match: re.Match[str]) -> int:
    return len(match["indent"].expandtabs())
