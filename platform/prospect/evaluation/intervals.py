"""Bootstrap confidence intervals over videos, and over videos and trainings."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from prospect.errors import DataError
from prospect.evaluation.tally import Floats, Ratio, Tally


@dataclass(frozen=True)
class Interval:
    """A metric and the percentile interval of its bootstrap samples."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def percentile_interval(value: Floats, samples: Floats, confidence: float) -> Interval | None:
    """None where the metric is undefined; samples in which it is undefined are left out."""
    defined = samples[~np.isnan(samples)]
    if np.isnan(value) or not len(defined):
        return None
    tail = 50 * (1 - confidence)
    low, high = np.percentile(defined, [tail, 100 - tail])
    return Interval(float(value), float(low), float(high))


def mean_intervals(videos: Mapping[str, Floats], samples: int, seed: int, confidence: float) -> list[Interval | None]:
    """The mean of each column over all rows, and its interval over videos.

    Args:
        videos: [rows, columns] of each; a video of more rows weighs more.
        samples: draws, each of as many videos as there are.
        seed: of the draws.
        confidence: share of the draws that an interval holds.
    """
    names = sorted(videos)
    sums = np.stack([np.append(videos[name].sum(0), len(videos[name])) for name in names])
    drawn = draw_counts(len(names), samples, seed) @ sums
    values, means = sums.sum(0)[:-1] / sums.sum(0)[-1], drawn[:, :-1] / drawn[:, -1:]
    return [percentile_interval(value, mean, confidence) for value, mean in zip(values, means.T, strict=True)]


def draw_runs(
    metric: Ratio, runs: Sequence[Mapping[str, Tally]], samples: int, video_seed: int, run_seed: int
) -> tuple[Floats, Floats]:
    """The mean of a metric over trainings that differ in their seed alone, and `samples` draws of that mean.

    Each draw takes as many trainings and as many videos as there are, both with replacement; the videos are the same
    for all trainings. Systems drawn with one `video_seed` can be compared pair by pair.

    Raises:
        DataError: the trainings were not scored on the same videos.
    """
    names = sorted(runs[0])
    if any(sorted(run) != names for run in runs):
        raise DataError("scores: the runs of one configuration were scored on different videos", field="videos")
    columns = np.stack([[run[name].columns() for name in names] for run in runs])
    sums = runs[0][names[0]].names
    videos, trainings = draw_counts(len(names), samples, video_seed), draw_counts(len(runs), samples, run_seed)
    drawn = metric(Tally.from_columns(sums, np.einsum("nv,rvk->nrk", videos, columns)))
    return metric(Tally.from_columns(sums, columns.sum(1))).mean(), (drawn * trainings).mean(1)


def draw_counts(count: int, samples: int, seed: int) -> Floats:
    """[samples, count]: how often each of `count` is drawn; rows add up to `count`."""
    return np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=samples).astype(np.float64)
