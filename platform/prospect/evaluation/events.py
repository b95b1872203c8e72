"""Match decided transitions to the reference's: same step, same kind, near in time."""

from collections import defaultdict
from collections.abc import Iterable

import numpy as np
from scipy.optimize import linear_sum_assignment

from prospect.dialogue.state import Transition
from prospect.evaluation.records import TimedEvent


def match_events(
    generated: Iterable[TimedEvent], reference: Iterable[TimedEvent], tolerance: float
) -> list[tuple[int, int]]:
    """One-to-one pairs of frames (generated, reference) of equal transitions.

    As many pairs as `tolerance` (frames, inclusive) allows, and among those the nearest in sum.
    """
    left, right = _by_transition(generated), _by_transition(reference)
    pairs: list[tuple[int, int]] = []
    for transition in left.keys() & right.keys():
        pairs += nearest_pairs(left[transition], right[transition], tolerance)
    return sorted(pairs)


def _by_transition(events: Iterable[TimedEvent]) -> dict[Transition, list[int]]:
    frames: dict[Transition, list[int]] = defaultdict(list)
    for frame, transition in events:
        frames[transition].append(frame)
    return frames


def nearest_pairs(generated: list[int], reference: list[int], tolerance: float) -> list[tuple[int, int]]:
    """As many one-to-one pairs of frames as `tolerance` (frames, inclusive) allows, and of those the nearest in sum."""
    if not generated or not reference:
        return []
    distance = np.abs(np.subtract.outer(generated, reference)).astype(np.float64)
    # One pair out of tolerance costs more than all pairs within it, so none within it is given up.
    cost = np.where(distance <= tolerance, distance, 1 + tolerance * distance.size)
    rows, columns = linear_sum_assignment(cost)
    return [
        (generated[row], reference[column])
        for row, column in zip(rows, columns, strict=True)
        if distance[row, column] <= tolerance
    ]
