"""Percentiles of durations."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Percentiles(NamedTuple):
    """Milliseconds over `number` frames; NaN over none."""

    p50: float
    p95: float
    p99: float
    number: int
    mean: float

    @classmethod
    def of(cls, seconds: np.ndarray | Sequence[float]) -> "Percentiles":
        """Sum up durations in seconds."""
        if not len(seconds):
            return cls(float("nan"), float("nan"), float("nan"), 0, float("nan"))
        p50, p95, p99 = (float(value) for value in 1000 * np.percentile(seconds, (50, 95, 99)))
        return cls(p50, p95, p99, len(seconds), float(1000 * np.mean(seconds)))
