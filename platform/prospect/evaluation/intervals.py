"""Bootstrap confidence intervals over videos."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from prospect.evaluation.tally import METRICS, Floats, Tally


@dataclass(frozen=True)
class Interval:
    """A metric and the percentile interval of its bootstrap samples."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def resample(videos: Mapping[str, Tally], samples: int, seed: int) -> Tally:
    """`samples` draws of as many videos as there are, with replacement; equal for equal names and seed."""
    columns = np.stack([videos[name].columns() for name in sorted(videos)])
    count = len(columns)
    draws = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=samples)
    return Tally.from_columns(draws.astype(np.float64) @ columns)


def percentile_interval(value: Floats, samples: Floats, confidence: float) -> Interval | None:
    """None where the metric is undefined; samples in which it is undefined are left out."""
    defined = samples[~np.isnan(samples)]
    if np.isnan(value) or not len(defined):
        return None
    tail = 50 * (1 - confidence)
    low, high = np.percentile(defined, [tail, 100 - tail])
    return Interval(float(value), float(low), float(high))


def metric_interval(metric: str, videos: Mapping[str, Tally], drawn: Tally, confidence: float) -> Interval | None:
    """The interval of one metric; `drawn` comes from `resample`."""
    function = METRICS[metric]
    return percentile_interval(function(Tally.total(videos.values())), function(drawn), confidence)
