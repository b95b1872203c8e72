"""Field types that messages of both directions share."""

from typing import Any, Literal

from prospect.dialogue.state import TaskState

StepLabel = Literal["not_started", "in_progress", "completed"]
StateMap = dict[str, StepLabel]
"""State by step id, in recipe order: {"S1": "completed", "S2": "in_progress"}."""


def state_map(state: TaskState) -> StateMap:
    labels: tuple[Any, ...] = state.labels
    return {f"S{number}": label for number, label in enumerate(labels, 1)}
