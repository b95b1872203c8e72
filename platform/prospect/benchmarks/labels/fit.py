"""Maximum-likelihood weights of the aligner, and the calibration of its confidences."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize

from prospect.benchmarks.labels.gold import GoldVideo
from prospect.data.labels.aligner import AlignerSettings, Evidence, decode
from prospect.data.labels.chain import Floats, marginals

Example = tuple[GoldVideo, Evidence]
BINS = (0.0, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)


@dataclass(frozen=True)
class Bin:
    """A bin of steps with similar confidences."""

    low: float
    high: float
    steps: int
    confidence: float
    """Mean confidence."""
    right: float
    """Mean share of right blocks."""


@dataclass(frozen=True)
class SpreadCalibration:
    """Steps by confidence, and the mean distance of confidence and truth (expected calibration error)."""

    bins: tuple[Bin, ...]
    error: float


def fit_weights(examples: Sequence[Example]) -> tuple[float, float]:
    """(similarity_weight, pause_weight) under which the gold assignments are most probable.

    Videos count equally; those out of order have no monotone path and are left out.
    """
    usable = [(np.array(video.gold), evidence) for video, evidence in examples if video.in_order]

    def loss(weights: Floats) -> tuple[float, Floats]:
        parts = [_loss(weights, gold, evidence) for gold, evidence in usable]
        return float(np.mean([value for value, _ in parts])), np.mean([slope for _, slope in parts], axis=0)

    similarity, pause = minimize(loss, np.ones(2), jac=True, method="L-BFGS-B").x
    return float(similarity), float(pause)


def fit_outside(settings: AlignerSettings, *sets: Sequence[Example]) -> tuple[float, float]:
    """(outside_price, outside_weight) under which the gold is most probable, its outside lines included.

    The sets count equally, and the videos of a set. The other weights stay as they are in `settings`, which were
    fitted on gold without such lines.
    """
    usable = [
        [(np.array(video.gold) + 1, evidence) for video, evidence in examples if video.in_order] for examples in sets
    ]

    def loss(weights: Floats) -> tuple[float, Floats]:
        price, weight = weights.tolist()
        changed = settings.model_copy(update={"outside_price": price, "outside_weight": weight})
        parts = [[_outside_loss(changed, gold, evidence) for gold, evidence in examples] for examples in usable]
        value = sum(float(np.mean([value for value, _ in part])) for part in parts)
        return value, np.sum([np.mean([slope for _, slope in part], axis=0) for part in parts], axis=0)

    price, weight = minimize(loss, np.array([-5.0, 10.0]), jac=True, method="L-BFGS-B").x
    return float(price), float(weight)


def calibration(examples: Sequence[Example], settings: AlignerSettings) -> SpreadCalibration:
    """Calibration over all steps of the examples."""
    sure, right = [], []
    for video, evidence in examples:
        alignment = decode(evidence.weighted(settings))
        path = np.array(alignment.assignment)
        sure.append(alignment.confidences)
        inside = path >= 0
        right.append(np.bincount(path[inside], (path == video.gold)[inside]) / np.bincount(path[inside]))
    confidences, truths = np.concatenate(sure), np.concatenate(right)
    which = np.clip(np.digitize(confidences, BINS) - 1, 0, len(BINS) - 2)
    bins = tuple(
        Bin(BINS[i], BINS[i + 1], int(mine.sum()), float(confidences[mine].mean()), float(truths[mine].mean()))
        for i in range(len(BINS) - 1)
        if (mine := which == i).any()
    )
    error = sum(each.steps * abs(each.confidence - each.right) for each in bins) / len(confidences)
    return SpreadCalibration(bins, error)


def _outside_loss(settings: AlignerSettings, gold: np.ndarray, evidence: Evidence) -> tuple[float, Floats]:
    """As `_loss`, for the outside weights; `gold` counts the state before the steps as 0."""
    table, boundaries = evidence.weighted(settings).padded()
    found = marginals(table, boundaries)
    steps = table.shape[1]
    path = np.array([0, *gold, steps - 1])
    likely = table[np.arange(len(path)), path].sum() + boundaries[np.diff(path) > 0].sum()
    outside = found.steps[1:-1, [0, -1]].sum(1)
    surplus = outside - np.isin(gold, (0, steps - 1))
    return float(found.log_total - likely), np.array([surplus.sum(), (surplus * evidence.bookkeeping).sum()])


def _loss(weights: Floats, gold: np.ndarray, evidence: Evidence) -> tuple[float, Floats]:
    """Negative log-likelihood of one video, and its gradient: expected minus observed features."""
    similarity, pause = weights
    found = marginals(similarity * evidence.similarity, pause * evidence.pauses)
    ends = np.diff(gold) > 0
    there = np.array([evidence.similarity[np.arange(len(gold)), gold].sum(), evidence.pauses[ends].sum()])
    expected = np.array([(found.steps * evidence.similarity).sum(), (found.boundaries * evidence.pauses).sum()])
    return float(found.log_total - weights @ there), expected - there
