"""The objects, actions and tasks of the corpus, and the tasks of each split."""

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeVar

from prospect.corpus.settings import CorpusSettings
from prospect.errors import ConfigError
from prospect.hashing import derived_seed

Split = Literal["train", "validation", "test"]
T = TypeVar("T")

DATASET = "sample"
"""Name of the corpus in its records."""

OBJECTS = ("ball", "box", "cone", "star", "leaf", "moon", "ring", "kite")
"""One for each of the 4 x 2 places, in order of the places unless they are shuffled."""

TOOLS = {"wash": "sponge", "cut": "knife", "paint": "brush", "wrap": "ribbon"}
"""Tool by action."""

CONTENT = frozenset({*OBJECTS, *TOOLS, *TOOLS.values()})
"""The words that carry the meaning of a sentence about the table."""

_MOST_ON_TABLE = 8
_MOST_ATTEMPTS = 10_000


class Action(NamedTuple):
    """The object and the action of one step."""

    object: str
    action: str

    @property
    def name(self) -> str:
        return f"{self.action.capitalize()} the {self.object}"


_ACTION = re.compile(rf"\b({'|'.join(TOOLS)}) the ({'|'.join(OBJECTS)})\b")


@dataclass(frozen=True)
class Task:
    """A recipe and the table on which it is carried out."""

    recipe: tuple[Action, ...]
    """In recipe order; an object occurs once."""
    distractors: tuple[str, ...]
    """Objects on the table that no step needs; at least one."""
    places: tuple[int, ...]
    """Place (0..7, row by row) of each of `OBJECTS`."""

    @property
    def goal(self) -> str:
        """The objects in the order of `OBJECTS`, which does not reveal the recipe's order."""
        *first, last = sorted((work.object for work in self.recipe), key=OBJECTS.index)
        return f"Prepare the {', '.join(first)} and {last}" if first else f"Prepare the {last}"


def content_words(text: str) -> frozenset[str]:
    """The objects, actions and tools that a sentence names."""
    return CONTENT & set(re.findall(r"\w+", text.lower()))


def named_actions(text: str) -> frozenset[str]:
    """The names of the steps that a sentence names, such as `Cut the kite`, whether a recipe has them or not."""
    found = _ACTION.findall(text.lower())
    return frozenset(Action(name, action).name for action, name in found)


def unseen_pairs(settings: CorpusSettings) -> frozenset[Action]:
    """The (object, action) pairs that only test videos show: different objects, actions in turn."""
    rng = random.Random(derived_seed(settings.seed, "unseen pairs"))
    objects = rng.sample(OBJECTS, settings.unseen_pairs)
    actions = rng.sample(tuple(TOOLS), len(TOOLS))
    return frozenset(Action(name, actions[index % len(actions)]) for index, name in enumerate(objects))


def draw_tasks(settings: CorpusSettings) -> dict[Split, list[Task]]:
    """The tasks of every split.

    Every object and every action occurs in training. Held out are
    - for validation and test: goals, the sets of (object, action) pairs of a recipe;
    - for test, with `settings.unseen_pairs`: that many pairs. Each test recipe has at least one of them.

    Raises:
        ConfigError: too few training videos to show every object and action, or too few pairs for an unseen set.
    """
    held_out = unseen_pairs(settings)
    tables = _Tables(settings)
    train = [tables.draw(held_out) for _ in range(settings.num_train)]
    _require_coverage(train, settings)
    seen = {frozenset(task.recipe) for task in train}
    validation = [_unseen(tables, held_out, seen, settings) for _ in range(settings.num_validation)]
    test = [_unseen(tables, frozenset(), seen, settings, include=held_out) for _ in range(settings.num_test)]
    return {"train": train, "validation": validation, "test": test}


def _unseen(
    tables: "_Tables",
    exclude: frozenset[Action],
    seen: set[frozenset[Action]],
    s: CorpusSettings,
    include: frozenset[Action] = frozenset(),
) -> Task:
    for _ in range(_MOST_ATTEMPTS):
        task = tables.draw(exclude, include)
        if frozenset(task.recipe) not in seen:
            return task
    raise ConfigError(
        f"max_steps: recipes of {s.min_steps} to {s.max_steps} steps leave no unseen set for validation and test "
        f"beside num_train {s.num_train}; raise max_steps",
        field="max_steps",
    )


def _require_coverage(train: list[Task], settings: CorpusSettings) -> None:
    works = [work for task in train for work in task.recipe]
    missing = (set(OBJECTS) - {work.object for work in works}) | (set(TOOLS) - {work.action for work in works})
    if missing and settings.num_validation + settings.num_test:
        raise ConfigError(
            f"num_train: {settings.num_train} training videos never show {', '.join(sorted(missing))}; "
            "give more, so that test videos combine what was seen",
            field="num_train",
        )


class _Tables:
    """Draws tasks from shuffled decks of objects and actions, so that a few videos show all of them."""

    def __init__(self, settings: CorpusSettings) -> None:
        self._settings = settings
        self._rng = random.Random(derived_seed(settings.seed, "tasks"))
        self._objects = _deal(OBJECTS, self._rng)
        self._actions = _deal(tuple(TOOLS), self._rng)

    def draw(self, exclude: frozenset[Action], include: frozenset[Action] = frozenset()) -> Task:
        """A task without the pairs of `exclude`, and with at least one of `include` if given."""
        rng, count = self._rng, self._rng.randint(self._settings.min_steps, self._settings.max_steps)
        recipe = [rng.choice(sorted(include))] if include else []
        while len(recipe) < count:
            name = next(self._objects)
            if all(work.object != name for work in recipe):
                recipe.append(next(w for w in (Action(name, action) for action in self._actions) if w not in exclude))
        rng.shuffle(recipe)
        spare = [name for name in OBJECTS if all(work.object != name for work in recipe)]
        distractors = rng.sample(spare, rng.randint(1, _MOST_ON_TABLE - count))
        places = list(range(len(OBJECTS)))
        if self._settings.shuffle_places:
            rng.shuffle(places)
        return Task(tuple(recipe), tuple(sorted(distractors)), tuple(places))


def _deal(items: tuple[T, ...], rng: random.Random) -> Iterator[T]:
    while True:
        yield from rng.sample(items, len(items))
