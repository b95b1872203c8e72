"""Field types that messages of both directions share."""

from typing import Literal

StepLabel = Literal["not_started", "in_progress", "completed"]
StateMap = dict[str, StepLabel]
"""State by step id, in recipe order: {"S1": "completed", "S2": "in_progress"}."""
