"""Assigns annotation lines to recipe steps without a language model.

A linear-chain model over monotone paths (chain.py). How much a block speaks for a step is the similarity of their
texts; how much a moment speaks for a boundary is the pause before the next block. Both weights are in log-odds, so
that the posterior over paths is a probability: they were fitted by maximum likelihood on half of GoalStep's videos
(docs/benchmarks.md). The answer is the path with the most blocks expected to be right; a step's confidence is the
share of its blocks expected to be right.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prospect.data.labels.chain import Floats, best_path, marginals
from prospect.data.labels.spans import SpanSettings, block_ends
from prospect.dialogue.schema import Annotation
from prospect.errors import DataError
from prospect.settings import Settings
from prospect.similarity import SentenceEncoder

_LONGEST_PAUSE = 8.0
"""In mean pauses of the video."""


class AlignerSettings(Settings):
    """The weights of the aligner's evidence."""

    similarity_weight: float = 3.9
    """Log-odds for one unit of cosine similarity."""
    pause_weight: float = 5.6
    """Log-odds for one unit of log(1 + pause / mean pause)."""
    blocks_per_step: int = 1
    """Containers (blocks.py) are opened while there are fewer blocks than this for each step."""
    spans: SpanSettings = SpanSettings()


@dataclass(frozen=True)
class Alignment:
    """A monotone assignment of all blocks to all steps."""

    assignment: tuple[int, ...]
    """Index of each block's step; every step has a block."""
    confidences: tuple[float, ...]
    """One in [0, 1] for each step."""


@dataclass(frozen=True)
class Evidence:
    """The evidence for an alignment, without weights."""

    similarity: Floats
    """[B, K] cosine between a block's text and a step's."""
    pauses: Floats
    """[B - 1] pause between each block and the next one (`pauses_between`)."""

    def weighted(self, settings: AlignerSettings) -> tuple[Floats, Floats]:
        """Scores of blocks on steps and of boundaries, in log-odds."""
        return settings.similarity_weight * self.similarity, settings.pause_weight * self.pauses


def align(
    steps: Sequence[str],
    blocks: Sequence[Annotation],
    encoder: SentenceEncoder,
    settings: AlignerSettings,
) -> Alignment:
    """The step of every block; blocks are in the order of their start.

    Raises:
        DataError: there are no steps, or fewer blocks than steps.
    """
    if not steps:
        raise DataError("steps: the recipe has none, so there is nothing to align", field="steps")
    if len(blocks) < len(steps):
        sentence = f"annotations: {len(blocks)} lines for {len(steps)} steps; every step needs a line of its own"
        raise DataError(sentence, field="annotations")
    return decode(*evidence(steps, blocks, encoder, settings.spans).weighted(settings))


def evidence(
    steps: Sequence[str],
    blocks: Sequence[Annotation],
    encoder: SentenceEncoder,
    settings: SpanSettings,
) -> Evidence:
    """Compute the evidence of the blocks' texts and times."""
    texts = [block.text for block in blocks]
    similarity = encoder.embed(texts).astype(np.float64) @ encoder.embed(steps).astype(np.float64).T
    return Evidence(similarity, pauses_between(blocks, settings))


def pauses_between(blocks: Sequence[Annotation], settings: SpanSettings) -> Floats:
    """[B - 1] log(1 + pause / mean pause of the video): the unit is the video's own, so any pace of work counts.

    A pause is the time from the end of all blocks so far to the next start; all zeros without any pause. At most
    8 mean pauses count: where lines are dense the mean is tiny, and one break must not overrule all text.
    """
    starts = np.array([block.start for block in blocks])
    ends = np.maximum.accumulate(block_ends(blocks, settings))
    pauses = np.maximum(starts[1:] - ends[:-1], 0)
    return np.log1p(np.minimum(pauses / pauses.mean(), _LONGEST_PAUSE)) if pauses.any() else np.zeros_like(pauses)


def decode(scores: Floats, boundaries: Floats) -> Alignment:
    """The path with the largest expected number of right blocks.

    It is better than the single most probable path where pauses say little and texts repeat (docs/benchmarks.md):
    thousands of paths are then nearly as probable, and the most probable one is an extreme.
    """
    posterior = marginals(scores, boundaries).steps
    path = best_path(posterior, np.zeros_like(boundaries))
    return Alignment(tuple(path.tolist()), _confidences(path, posterior))


def support(
    assignment: Sequence[int],
    steps: Sequence[str],
    blocks: Sequence[Annotation],
    encoder: SentenceEncoder,
    settings: AlignerSettings,
) -> tuple[float, ...]:
    """One confidence in [0, 1] for each step of a given assignment, such as a language model's."""
    scores, boundaries = evidence(steps, blocks, encoder, settings.spans).weighted(settings)
    return _confidences(np.asarray(assignment), marginals(scores, boundaries).steps)


def _confidences(path: NDArray[np.intp], posterior: Floats) -> tuple[float, ...]:
    """The share of each step's blocks that are expected to be right."""
    of_block = posterior[np.arange(len(path)), path]
    return tuple(np.clip(np.bincount(path, of_block) / np.bincount(path), 0, 1).tolist())
