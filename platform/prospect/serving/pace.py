"""How fast an engine has stepped of late, for whoever asks from any thread."""

import time
from collections import deque

import numpy as np

from prospect.monitoring import Readings
from prospect.streaming.engine import StreamingEngine
from prospect.streaming.types import Decision, EngineEvent

RECENT_S = 10.0
"""Seconds for which a step counts."""


class Pace:
    """Durations of an engine's latest steps that had work, and the frames that they decided.

    Args:
        readings: get the durations as well.
    """

    def __init__(self, readings: Readings) -> None:
        self._readings = readings
        self._steps: deque[tuple[float, float, int]] = deque(maxlen=1000)
        """(end, duration, decisions)."""

    def step(self, engine: StreamingEngine) -> list[tuple[str, EngineEvent]]:
        """Step an engine, and note how long it took if it had work."""
        if not engine.has_work():
            return engine.step()
        began = time.monotonic()
        events = engine.step()
        ended = time.monotonic()
        self._steps.append((ended, ended - began, sum(isinstance(event, Decision) for _, event in events)))
        self._readings.observe("prospect_step_seconds", ended - began)
        return events

    def mean_step_s(self) -> float:
        """Return the mean seconds of the steps of the last `RECENT_S`; 0 without steps."""
        steps = self._recent()
        return sum(seconds for _, seconds, _ in steps) / len(steps) if steps else 0.0

    def summary(self) -> dict[str, float]:
        """Return decisions a second, and the percentiles of the steps' seconds; 0 without steps."""
        steps = self._recent()
        if not steps:
            return {"decisions_per_second": 0.0, "step_p50": 0.0, "step_p95": 0.0}
        p50, p95 = (float(each) for each in np.percentile([seconds for _, seconds, _ in steps], (50, 95)))
        span = time.monotonic() - steps[0][0] if len(steps) == self._steps.maxlen else RECENT_S
        decided = sum(decisions for _, _, decisions in steps)
        return {"decisions_per_second": decided / span, "step_p50": p50, "step_p95": p95}

    def _recent(self) -> list[tuple[float, float, int]]:
        since = time.monotonic() - RECENT_S
        return [step for step in list(self._steps) if step[0] >= since]
