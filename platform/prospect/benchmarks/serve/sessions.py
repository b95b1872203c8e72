"""What every benchmark session is opened with: a recipe whose state never moves, and thresholds."""

from typing import Any

from prospect.benchmarks.serve.settings import ServeSuite
from prospect.streaming.types import SessionSpec

GOAL = "Make tea"
SPEAK, NEVER = 0.5, 1.0


def steps_of(suite: ServeSuite) -> tuple[str, ...]:
    return tuple(f"step number {number}" for number in range(1, suite.steps + 1))


def session_spec(suite: ServeSuite) -> SessionSpec:
    """A session, as the engine opens it."""
    return SessionSpec(goal=GOAL, steps=steps_of(suite), speak_threshold=SPEAK, update_threshold=NEVER)


def opening(suite: ServeSuite) -> dict[str, Any]:
    """A session, as a client opens it."""
    thresholds = {"speak": SPEAK, "update": NEVER}
    return {"type": "session.update", "goal": GOAL, "steps": steps_of(suite), "thresholds": thresholds}
