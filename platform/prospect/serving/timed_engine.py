"""A streaming engine that knows how busy it is."""

import time
from collections import deque
from typing import Any

from prospect.serving.autoscaling import SESSIONS, STEP_S
from prospect.streaming.engine import StreamingEngine
from prospect.streaming.types import EngineEvent

RECENT_S = 10.0
"""Seconds for which a step counts."""


class TimedEngine(StreamingEngine):
    """A `StreamingEngine` whose load may be asked for from any thread."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._recent: deque[tuple[float, float]] = deque(maxlen=1000)
        """End and duration of the latest steps that had work."""

    def step(self) -> list[tuple[str, EngineEvent]]:
        """Step, and note how long it took."""
        if not self.has_work():
            return super().step()
        began = time.monotonic()
        events = super().step()
        ended = time.monotonic()
        self._recent.append((ended, ended - began))
        return events

    def load(self) -> dict[str, float]:
        """Return the number of sessions, and the mean seconds of the steps of the last `RECENT_S`; 0 without steps."""
        since = time.monotonic() - RECENT_S
        took = [seconds for ended, seconds in list(self._recent) if ended >= since]
        return {SESSIONS: float(len(self.session_ids)), STEP_S: sum(took) / len(took) if took else 0.0}
