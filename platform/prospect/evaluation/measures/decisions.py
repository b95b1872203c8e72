"""Scores of the two decisions of a frame, speak and update, whatever is said or changed.

At frames: a decision is right at the reference's very frame. As events: one-to-one, within the tolerance, in the
nearest way. And of the probabilities behind them: how they rank frames, and whether they mean what they say.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from prospect.dialogue.timeline import FPS
from prospect.evaluation.events import nearest_pairs
from prospect.evaluation.records import VideoDecisions
from prospect.evaluation.settings import EvaluationSettings
from prospect.evaluation.tally import Floats, Ratio, Sums, precision_recall_f1

Head = Literal["speak", "update"]
HEADS: tuple[Head, ...] = ("speak", "update")
BINS = 10
"""Of the reliability diagram and of the calibration error, equally wide."""


@dataclass(frozen=True)
class Readings:
    """Of one dialogue and one decision."""

    probabilities: Floats
    """[N], one a decided frame."""
    labels: np.ndarray
    """bool [N]: whether the reference acts at that frame."""
    latencies: Floats
    """[M] seconds from the reference to the system's act, one a pair of events; negative: early."""


def read_decisions(video: VideoDecisions, settings: EvaluationSettings) -> dict[Head, Readings]:
    """Probabilities, labels and latencies by head."""
    decided = [(frame, video.by_frame[frame]) for frame in video.frames if frame in video.by_frame]
    acts = _acts(video, settings)
    found: dict[Head, Readings] = {}
    for head in HEADS:
        generated, reference = acts[head]
        found[head] = Readings(
            np.array([d.p_speak if head == "speak" else d.p_update for _, d in decided], dtype=np.float64),
            np.array([frame in set(reference) for frame, _ in decided], dtype=bool),
            np.array([(a - b) / FPS for a, b in _paired(generated, reference, settings)], dtype=np.float64),
        )
    return found


def count_decisions(video: VideoDecisions, settings: EvaluationSettings) -> Sums:
    """Sums of one dialogue."""
    sums: Sums = {}
    for head, (generated, reference) in _acts(video, settings).items():
        sums |= {
            f"{head}_generated": len(generated),
            f"{head}_reference": len(reference),
            f"{head}_frames": len({*generated} & {*reference}),
            f"{head}_paired": len(_paired(generated, reference, settings)),
        }
    return sums


def _acts(video: VideoDecisions, settings: EvaluationSettings) -> dict[Head, tuple[list[int], list[int]]]:
    """Frames at which the system and the reference act."""
    updates = sorted({frame for frame, _ in video.events()})
    due = sorted({frame for frame, _ in video.reference_events(settings.state_policy)})
    return {"speak": (sorted(video.utterances), sorted(video.reference_utterances)), "update": (updates, due)}


def _paired(generated: list[int], reference: list[int], settings: EvaluationSettings) -> list[tuple[int, int]]:
    return nearest_pairs(generated, reference, settings.event_tolerance * FPS)


METRICS: dict[str, Ratio] = {
    name: metric
    for head in HEADS
    for kind, right in (("frame", f"{head}_frames"), ("event", f"{head}_paired"))
    for name, metric in precision_recall_f1(f"{head}_{kind}", right, f"{head}_generated", f"{head}_reference").items()
}
"""`speak_event_f1` is the F1 of the times of utterances, in whichever words (as SPOT-Bench's Timeliness-F1)."""


@dataclass(frozen=True)
class RankedCounts:
    """Frames by probability, falling: the sufficient statistic of every score below, for B draws at once."""

    probabilities: Floats
    """[G], distinct."""
    positives: Floats
    """[B, G]."""
    negatives: Floats
    """[B, G]."""


def average_precision(counts: RankedCounts) -> Floats:
    """[B] sum over thresholds of (R_n - R_(n-1)) P_n, every distinct probability one threshold; NaN without a positive.

    The definition of scikit-learn's `average_precision_score`.
    """
    hits = np.cumsum(counts.positives, axis=-1)
    shown = np.cumsum(counts.positives + counts.negatives, axis=-1)
    precision = np.divide(hits, shown, out=np.zeros_like(hits), where=shown > 0)
    return _share((counts.positives * precision).sum(-1), counts.positives.sum(-1))


def roc_auc(counts: RankedCounts) -> Floats:
    """[B] the share of pairs (positive, negative) that the probability orders rightly, ties half; NaN without a pair.

    The Mann-Whitney statistic (Hanley and McNeil 1982).
    """
    above = np.cumsum(counts.positives, axis=-1) - counts.positives
    right = (counts.negatives * (above + counts.positives / 2)).sum(-1)
    return _share(right, counts.positives.sum(-1) * counts.negatives.sum(-1))


def calibration_error(counts: RankedCounts) -> Floats:
    """[B] expected calibration error: sum over bins of n_b / N |share of positives - mean probability|.

    Ten equally wide bins (Guo et al. 2017, arXiv 1706.04599).
    """
    frames, positives, probability = _binned(counts)
    return _share(np.abs(positives - probability).sum(-1), frames.sum(-1))


RANKED = {"average_precision": average_precision, "roc_auc": roc_auc, "calibration_error": calibration_error}
"""By the end of their names, behind the head's."""


def reliability(counts: RankedCounts) -> list[dict[str, float]]:
    """The bins behind the calibration error that hold frames: mean probability, share of positives, frames."""
    frames, positives, probability = (part[0] for part in _binned(counts))
    return [
        {"probability": float(p / n), "positives": float(y / n), "frames": float(n)}
        for n, y, p in reversed([*zip(frames, positives, probability, strict=True)])
        if n
    ]


def _binned(counts: RankedCounts) -> tuple[Floats, Floats, Floats]:
    """[B, bins] frames, positives and summed probability, of bins that hold a distinct probability, falling."""
    bins = np.minimum((counts.probabilities * BINS).astype(int), BINS - 1)
    starts = np.flatnonzero(np.diff(bins, prepend=-1))
    frames = counts.positives + counts.negatives
    parts = (frames, counts.positives, frames * counts.probabilities)
    binned = [np.add.reduceat(part, starts, axis=-1) if len(starts) else part for part in parts]
    return binned[0], binned[1], binned[2]


def weighted_quantile(values: Floats, weights: Floats, quantile: float) -> Floats:
    """[B] the least of `values` [G], rising, up to which `weights` [B, G] hold that share; NaN without weight."""
    total = weights.sum(-1)
    if not len(values):
        return np.full(total.shape, np.nan)
    reached = np.cumsum(weights, axis=-1) >= quantile * total[..., None] - 1e-9
    return np.where(total > 0, values[np.argmax(reached, axis=-1)], np.nan)


def _share(part: Floats, whole: Floats) -> Floats:
    return np.divide(part, whole, out=np.full(np.shape(whole), np.nan), where=whole > 0)


def precision_recall_curve(counts: RankedCounts, points: int = 200) -> dict[str, list[float]]:
    """Precision, recall and threshold, falling thresholds, thinned to `points`."""
    hits, shown = np.cumsum(counts.positives[0]), np.cumsum(counts.positives[0] + counts.negatives[0])
    if not len(hits) or not hits[-1]:
        return {}
    keep = np.unique(np.linspace(0, len(hits) - 1, min(points, len(hits))).astype(int))
    return {
        "threshold": counts.probabilities[keep].tolist(),
        "precision": (hits[keep] / shown[keep]).tolist(),
        "recall": (hits[keep] / hits[-1]).tolist(),
        "share": [float(hits[-1] / shown[-1])],
    }


def rank(readings: Sequence[Readings], weights: Floats) -> RankedCounts:
    """Counts by probability of several dialogues, drawn with `weights` [B, dialogues]."""
    probabilities = np.concatenate([part.probabilities for part in readings])
    labels = np.concatenate([part.labels for part in readings])
    owner = np.repeat(np.arange(len(readings)), [len(part.probabilities) for part in readings])
    distinct, place = np.unique(-probabilities, return_inverse=True)
    return RankedCounts(
        -distinct, *(_drawn(place[kind], owner[kind], len(distinct), weights) for kind in (labels, ~labels))
    )


def rank_latencies(readings: Sequence[Readings], weights: Floats) -> tuple[Floats, Floats]:
    """Distinct latencies [G], rising, and how often each was drawn [B, G]."""
    latencies = np.concatenate([part.latencies for part in readings])
    owner = np.repeat(np.arange(len(readings)), [len(part.latencies) for part in readings])
    distinct, place = np.unique(latencies, return_inverse=True)
    return distinct, _drawn(place, owner, len(distinct), weights)


def _drawn(place: np.ndarray, owner: np.ndarray, groups: int, weights: Floats) -> Floats:
    """[B, G]: how many members each group has, where each member counts as often as its owner was drawn."""
    from scipy.sparse import coo_array

    counts = coo_array((np.ones(len(place)), (owner, place)), shape=(weights.shape[1], groups)).tocsr()
    return np.asarray((counts.T @ weights.T).T)
