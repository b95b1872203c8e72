"""Monotone paths over a table of scores: block by block, a path stays on its step or goes on to the next one.

A path starts on the first step, ends on the last and leaves none out. Its score is the sum of one score for each
block on its step and one for each boundary where it goes on. Both functions loop over blocks and are vectorised
over steps.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Marginals:
    """The posterior over paths, each weighted by the exponential of its score."""

    log_total: float
    """Logarithm of the sum of all weights."""
    steps: Floats
    """[B, K] probability that block b belongs to step k."""
    boundaries: Floats
    """[B - 1] probability that a step ends between block b and the next one."""


def marginals(scores: Floats, boundaries: Floats) -> Marginals:
    """Posterior by forward and backward recursion; `scores` [B, K] with B >= K, `boundaries` [B - 1], all finite."""
    blocks, steps = scores.shape
    forward, backward = (np.full((blocks, steps), -np.inf) for _ in range(2))
    forward[0, 0] = scores[0, 0]
    for block in range(1, blocks):
        before = forward[block - 1]
        forward[block, 0] = before[0] + scores[block, 0]
        gone_on = before[:-1] + boundaries[block - 1]
        forward[block, 1:] = np.logaddexp(before[1:], gone_on) + scores[block, 1:]
    backward[-1, -1] = 0
    for block in range(blocks - 2, -1, -1):
        after = backward[block + 1] + scores[block + 1]
        backward[block, -1] = after[-1]
        backward[block, :-1] = np.logaddexp(after[:-1], after[1:] + boundaries[block])
    total = float(forward[-1, -1])
    crossing = forward[:-1, :-1] + boundaries[:, None] + (scores + backward)[1:, 1:]
    return Marginals(total, np.exp(forward + backward - total), np.exp(crossing - total).sum(1))


def best_path(scores: Floats, boundaries: Floats) -> NDArray[np.intp]:
    """[B] the step of each block on the path of the highest score; ties go to the path that moves on latest."""
    blocks, steps = scores.shape
    went_on = np.zeros((blocks, steps), dtype=bool)
    best = np.full(steps, -np.inf)
    best[0] = scores[0, 0]
    for block in range(1, blocks):
        gone_on = np.concatenate([[-np.inf], best[:-1] + boundaries[block - 1]])
        went_on[block] = gone_on > best
        best = np.maximum(best, gone_on) + scores[block]
    path = np.empty(blocks, dtype=np.intp)
    path[-1] = steps - 1
    for block in range(blocks - 1, 0, -1):
        path[block - 1] = path[block] - went_on[block, path[block]]
    return path
