"""Scores over the threshold of a decision, from dialogues that were streamed at each."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from prospect.evaluation.metrics import SliceScores, evaluate
from prospect.evaluation.records import VideoDecisions
from prospect.evaluation.settings import EvaluationSettings
from prospect.evaluation.thresholds import DEFAULT
from prospect.similarity import SentenceEncoder

Decides = Literal["speak", "update"]


_METRIC, _REFERENCE = {"speak": "turn", "update": "dst"}, {"speak": "reference", "update": "events_reference"}


@dataclass(frozen=True)
class Point:
    """Scores at one threshold."""

    threshold: float
    f1: float
    precision: float
    recall: float
    events: int
    """Turns or transitions of the reference."""


Curves = dict[str, list[Point]]
"""Data set, or `DEFAULT` for all of them -> points in the order of the grid."""


def threshold_curves(
    name: Decides,
    grid: Sequence[float],
    streamed: Sequence[Sequence[VideoDecisions]],
    settings: EvaluationSettings,
    encoder: SentenceEncoder,
) -> Curves:
    """Score the dialogues that were streamed at each threshold of `grid`, by data set and all together."""
    curves: Curves = {}
    settings = settings.model_copy(update={"bootstrap_samples": 1})
    for threshold, videos in zip(grid, streamed, strict=True):
        scores = evaluate(videos, settings, encoder)
        for dataset, part in {**scores.by_dataset, DEFAULT: scores.overall}.items():
            curves.setdefault(dataset, []).append(_point(name, threshold, part))
    return curves


def _point(name: Decides, threshold: float, scores: SliceScores) -> Point:
    f1, precision, recall = (scores[f"{_METRIC[name]}_{part}"] or 0.0 for part in ("f1", "precision", "recall"))
    return Point(threshold, f1, precision, recall, int(scores.counts[_REFERENCE[name]]))
