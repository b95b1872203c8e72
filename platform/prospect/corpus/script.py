"""The events of one video. Times are seconds and multiples of 0.5."""

import random
from dataclasses import dataclass
from typing import Literal

from prospect.corpus.settings import CorpusSettings
from prospect.corpus.tasks import Action, Task

UserType = Literal["no_talk", "talk_some", "talk_more"]
UserMove = Literal["next", "tool", "acknowledge"]

TALK_RATES: dict[UserType, float] = {"no_talk": 0.0, "talk_some": 0.2, "talk_more": 0.4}
"""Share of steps at which the user asks something, and again at which the user acknowledges."""


@dataclass(frozen=True)
class ScriptSpan:
    """The hand works on one object with one tool from `start` to `end`."""

    start: float
    end: float
    work: Action
    step: int | None
    """Index into the recipe; None: a mistake, the object is a distractor and stays as it is."""


@dataclass(frozen=True)
class Script:
    """One video's events."""

    task: Task
    user_type: UserType
    goal_time: float
    spans: tuple[ScriptSpan, ...]
    """In time order, never overlapping; a step may start at the moment at which the last one ends."""
    user_moves: tuple[tuple[float, UserMove], ...]
    """What the user says after the goal, in time order."""
    duration: float


def write_script(task: Task, user_type: UserType, settings: CorpusSettings, rng: random.Random) -> Script:
    """Carries out `task`: mostly in recipe order, with pauses, deviations and mistakes at the set rates."""
    goal_time = rng.choice((0.5, 1.0))
    spans: list[ScriptSpan] = []
    for step in _performed_order(len(task.recipe), settings, rng):
        work = task.recipe[step]
        clock = spans[-1].end if spans else goal_time
        if not spans or rng.random() >= settings.chain_rate:
            clock += _draw(settings.pause if spans else settings.idle, rng)
            if rng.random() < settings.mistake_rate:
                wrong = Action(rng.choice(task.distractors), work.action)
                spans.append(ScriptSpan(clock, clock + _draw((1.0, 2.0), rng), wrong, None))
                clock = spans[-1].end + _draw(settings.pause, rng)
        spans.append(ScriptSpan(clock, clock + _draw(settings.step_duration, rng), work, step))
    moves = _user_moves(goal_time, spans, TALK_RATES[user_type], rng)
    return Script(task, user_type, goal_time, tuple(spans), moves, spans[-1].end + _draw(settings.idle, rng))


def _performed_order(count: int, settings: CorpusSettings, rng: random.Random) -> list[int]:
    remaining, order = list(range(count)), []
    while remaining:
        deviates = len(remaining) > 1 and rng.random() < settings.deviation_rate
        order.append(remaining.pop(rng.randrange(1, len(remaining)) if deviates else 0))
    return order


def _draw(bounds: tuple[float, float], rng: random.Random) -> float:
    return rng.randint(round(bounds[0] * 2), round(bounds[1] * 2)) / 2


def _user_moves(
    goal_time: float, spans: list[ScriptSpan], rate: float, rng: random.Random
) -> tuple[tuple[float, UserMove], ...]:
    busy = [goal_time, *(time for span in spans for time in (span.start, span.end))]
    moves: list[tuple[float, UserMove]] = []

    def say(move: UserMove, earliest: float, latest: float) -> None:
        times = [tick / 2 for tick in range(round(earliest * 2), round(latest * 2) + 1)]
        if free := [time for time in times if _is_free(time, busy)]:
            moves.append((rng.choice(free), move))
            busy.append(moves[-1][0])

    instructed = goal_time
    for span in spans:
        if span.step is None:
            continue
        if rng.random() < rate:
            say("acknowledge", instructed + 0.5, instructed + 1.0)
        if rng.random() < rate:
            say(rng.choice(("next", "tool")), instructed + 0.5, span.end)
        instructed = span.end
    return tuple(sorted(moves))


def _is_free(time: float, busy: list[float]) -> bool:
    """A user's turn at t is answered at frame 2t: no other event may be decided at that frame or next to it."""
    return all(time >= other + 0.5 or time <= other - 1.0 for other in busy)
