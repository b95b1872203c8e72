"""The task's state machine (docs/architecture.md#state-machine): immutable states, deltas, what is legal."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from typing import Literal

from prospect.dialogue.schema import TransitionKind
from prospect.errors import DataError


class StepState(IntEnum):
    """Class ids of the state head, in the only direction that a step can move."""

    NOT_STARTED = 0
    IN_PROGRESS = 1
    COMPLETED = 2

    @property
    def label(self) -> str:
        return self.name.lower()


StatePolicy = Literal["strict", "implied_start"]
"""`strict`: complete only from in_progress. `implied_start`: also from not_started."""


@dataclass(frozen=True, order=True)
class Transition:
    """One step's change. Ordering is that of a delta: step index, start before complete."""

    step: int
    """Index into the recipe, from 0; written S1, S2, ... in text."""
    completes: bool

    @classmethod
    def of(cls, step: int, kind: TransitionKind) -> "Transition":
        return cls(step, kind == "complete")

    @property
    def kind(self) -> TransitionKind:
        return "complete" if self.completes else "start"

    def __str__(self) -> str:
        return f"S{self.step + 1}->{self.kind}"


Delta = tuple[Transition, ...]
"""The transitions decided at one frame, in the order in which they apply."""


def format_delta(delta: Iterable[Transition]) -> str:
    """`S1->complete; S2->start`."""
    return "; ".join(map(str, delta))


_TRANSITION = re.compile(r"S([1-9]\d*)->(start|complete)")


def parse_delta(text: str) -> Delta:
    """The inverse of `format_delta`.

    Raises:
        DataError: the text is not a delta.
    """
    transitions = []
    for part in text.split("; "):
        match = _TRANSITION.fullmatch(part)
        if match is None:
            raise DataError(f"delta: {part!r} is not of the form S1->start or S1->complete", field="delta")
        transitions.append(Transition(int(match.group(1)) - 1, match.group(2) == "complete"))
    return tuple(transitions)


@dataclass(frozen=True)
class TaskState:
    """The state of every step, in recipe order."""

    steps: tuple[StepState, ...]

    @classmethod
    def initial(cls, num_steps: int) -> "TaskState":
        return cls((StepState.NOT_STARTED,) * num_steps)

    @classmethod
    def from_labels(cls, labels: Iterable[str]) -> "TaskState":
        """From `not_started`, `in_progress` and `completed`.

        Raises:
            DataError: another label.
        """
        try:
            return cls(tuple(StepState[label.upper()] for label in labels))
        except KeyError as error:
            known = ", ".join(state.label for state in StepState)
            raise DataError(f"state: {error.args[0].lower()!r} must be one of {known}", field="state") from None

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(state.label for state in self.steps)

    def __len__(self) -> int:
        return len(self.steps)

    def is_legal(self, transition: Transition, policy: StatePolicy = "strict") -> bool:
        if not 0 <= transition.step < len(self.steps):
            return False
        current = self.steps[transition.step]
        if not transition.completes:
            return current is StepState.NOT_STARTED
        return current is StepState.IN_PROGRESS or (policy == "implied_start" and current is StepState.NOT_STARTED)

    def apply(self, delta: Iterable[Transition], policy: StatePolicy = "strict") -> tuple["TaskState", Delta]:
        """The state after `delta`, and the illegal transitions of it, which were not applied."""
        steps, illegal = list(self.steps), []
        for transition in delta:
            if TaskState(tuple(steps)).is_legal(transition, policy):
                steps[transition.step] = StepState.COMPLETED if transition.completes else StepState.IN_PROGRESS
            else:
                illegal.append(transition)
        return TaskState(tuple(steps)), tuple(illegal)

    def legal_transitions(self, policy: StatePolicy = "strict") -> Delta:
        """Everything that may happen next, in recipe order; empty when every step is completed."""
        candidates = (Transition(step, completes) for step in range(len(self.steps)) for completes in (False, True))
        return tuple(transition for transition in candidates if self.is_legal(transition, policy))

    def delta_to(self, later: "TaskState") -> Delta:
        """The shortest delta from here to `later`.

        Raises:
            DataError: a step would have to move backwards.
        """
        transitions = []
        for step, (before, after) in enumerate(zip(self.steps, later.steps, strict=True)):
            if after < before:
                raise DataError(f"state: step S{step + 1} cannot go back from {before.label} to {after.label}")
            if before is StepState.NOT_STARTED and after > before:
                transitions.append(Transition(step, completes=False))
            if after is StepState.COMPLETED and after > before:
                transitions.append(Transition(step, completes=True))
        return tuple(transitions)
