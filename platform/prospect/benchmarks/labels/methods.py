"""Ways to assign blocks to steps, from evidence alone: simpler ones, the earlier labeller's, and the aligner's.

Each takes the evidence and the settings and returns [B] steps, or -1 for a block of none. The simpler ones may leave
steps out or go back, and assign every block.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from prospect.data.labels.aligner import AlignerSettings, Evidence, decode
from prospect.data.labels.chain import Floats, best_path

Assignment = NDArray[np.intp]
Method = Callable[[Evidence, AlignerSettings], Assignment]


def uniform(evidence: Evidence, settings: AlignerSettings) -> Assignment:
    """Give every step the same number of blocks."""
    blocks, steps = evidence.similarity.shape
    return np.arange(blocks) * steps // blocks


def greedy(evidence: Evidence, settings: AlignerSettings) -> Assignment:
    """Go forward from the first step: at each block, take the better of this step and the next."""
    return _pass(_normalised(evidence.similarity))[0]


def bidirectional(evidence: Evidence, settings: AlignerSettings) -> Assignment:
    """ProAssist's hybrid labeller without its language model.

    A forward pass from the first step and a backward pass from the last; where they differ, the one with the
    higher softmax of its two candidates is kept.
    """
    scores = _normalised(evidence.similarity)
    steps = scores.shape[1]
    forward, sure_forward = _pass(scores)
    backward, sure_backward = _pass(scores[::-1, ::-1])
    backward, sure_backward = steps - 1 - backward[::-1], sure_backward[::-1]
    return np.where(sure_forward >= sure_backward, forward, backward)


def most_probable_path(evidence: Evidence, settings: AlignerSettings) -> Assignment:
    """ProAssist's monotone dynamic program on the same scores, anchored at both ends."""
    return best_path(_normalised(evidence.similarity), np.zeros_like(evidence.pauses))


def text_only(evidence: Evidence, settings: AlignerSettings) -> Assignment:
    return aligner(replace(evidence, pauses=np.zeros_like(evidence.pauses)), settings)


def pauses_only(evidence: Evidence, settings: AlignerSettings) -> Assignment:
    return aligner(replace(evidence, similarity=np.zeros_like(evidence.similarity)), settings)


def aligner_best_path(evidence: Evidence, settings: AlignerSettings) -> Assignment:
    """The aligner's evidence and weights, but its single most probable path."""
    scores = evidence.weighted(settings)
    return best_path(scores.steps, scores.boundaries)


def aligner(evidence: Evidence, settings: AlignerSettings) -> Assignment:
    return np.array(decode(evidence.weighted(settings)).assignment)


def aligner_assigning_all(evidence: Evidence, settings: AlignerSettings) -> Assignment:
    """The aligner where no block may stay unassigned."""
    return aligner(evidence, settings.model_copy(update={"outside_price": -1e3, "outside_weight": 0.0}))


METHODS: Mapping[str, Method] = {
    "uniform split": uniform,
    "greedy forward pass": greedy,
    "bidirectional": bidirectional,
    "monotone DP": most_probable_path,
    "aligner, pauses only": pauses_only,
    "aligner, text only": text_only,
    "aligner, best path": aligner_best_path,
    "aligner, every line assigned": aligner_assigning_all,
    "aligner": aligner,
}


def _pass(scores: Floats) -> tuple[Assignment, Floats]:
    """[B] steps, never going back, and the softmax of the chosen one of two candidates."""
    blocks, steps = scores.shape
    path, sure = np.zeros(blocks, dtype=np.intp), np.ones(blocks)
    for block in range(1, blocks):
        step = path[block - 1]
        if step + 1 < steps:
            gain = scores[block, step + 1] - scores[block, step]
            step += gain > 0
            sure[block] = 1 / (1 + np.exp(-abs(gain)))
        path[block] = step
    return path, sure


def _normalised(similarity: Floats) -> Floats:
    """Each row less its mean, over its standard deviation."""
    centred = similarity - similarity.mean(1, keepdims=True)
    return centred / np.maximum(similarity.std(1, keepdims=True), 1e-9)
