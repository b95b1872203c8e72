"""Scores of an assignment by video, and bootstrap intervals over videos."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prospect.benchmarks.labels.gold import GoldVideo
from prospect.data.labels.chain import Floats
from prospect.evaluation.intervals import Interval, percentile_interval


@dataclass(frozen=True)
class VideoScore:
    """One video under one method."""

    accuracy: float
    """Share of blocks on their step."""
    blocks: int
    iou: float
    """Mean over steps of the span's intersection over union with the annotated one; 0 for a step without blocks."""
    missing: float
    """Share of steps without a block."""
    offsets: Floats
    """[K - 1] seconds between a step's start and the start that it was given, from the second step on; a step
    without blocks is given the start of the next block that belongs to a later step."""


@dataclass(frozen=True)
class Summary:
    """All videos under one method; `accuracy` and `iou` are means over videos, offsets are pooled."""

    accuracy: Interval
    block_accuracy: Interval
    """Accuracy over all blocks, in which long videos count more."""
    iou: Interval
    offset_mean: Interval
    offset_median: Interval
    missing: float


def score(video: GoldVideo, assignment: NDArray[np.intp], ends: Floats) -> VideoScore:
    """`assignment` [B] steps, -1 where outside of all; `ends` [B] seconds."""
    gold = np.where(np.array(video.gold) == len(video.steps), -1, video.gold)
    starts = np.array([block.start for block in video.blocks])
    ious, given = [], []
    for step, (start, end) in enumerate(video.spans):
        mine, later = assignment == step, assignment > step
        own = mine if mine.any() else later
        given.append(starts[own].min() if own.any() else ends.max())
        ious.append(_iou(starts[mine].min(), ends[mine].max(), start, end) if mine.any() else 0.0)
    offsets = np.abs(np.array(given) - [start for start, _ in video.spans])[1:]
    missing = 1 - len(np.unique(assignment[assignment >= 0])) / len(video.steps)
    return VideoScore(float((assignment == gold).mean()), len(assignment), float(np.mean(ious)), missing, offsets)


def summarize(scores: Sequence[VideoScore], samples: int, seed: int) -> Summary:
    """With 95 % percentile bootstrap intervals over videos; the same draws for every method."""
    draws = np.random.default_rng(seed).integers(len(scores), size=(samples, len(scores)))
    accuracy, iou, blocks = (
        np.array([getattr(each, name) for each in scores]) for name in ("accuracy", "iou", "blocks")
    )
    right = accuracy * blocks
    offsets = [each.offsets for each in scores]
    pooled = np.concatenate(offsets)
    drawn = [np.concatenate([offsets[i] for i in draw]) for draw in draws]
    return Summary(
        accuracy=_interval(accuracy.mean(), accuracy[draws].mean(1)),
        block_accuracy=_interval(right.sum() / blocks.sum(), right[draws].sum(1) / blocks[draws].sum(1)),
        iou=_interval(iou.mean(), iou[draws].mean(1)),
        offset_mean=_interval(pooled.mean(), np.array([each.mean() for each in drawn])),
        offset_median=_interval(np.median(pooled), np.array([np.median(each) for each in drawn])),
        missing=float(np.mean([each.missing for each in scores])),
    )


def _interval(value: np.floating, samples: Floats) -> Interval:
    found = percentile_interval(np.asarray(value), samples, 0.95)
    assert found is not None
    return found


def _iou(start: float, end: float, other_start: float, other_end: float) -> float:
    union = max(end, other_end) - min(start, other_start)
    return max(0.0, min(end, other_end) - max(start, other_start)) / union if union > 0 else 1.0
