"""Assigns annotation lines to recipe steps without a language model.

A linear-chain model over monotone paths (chain.py). How much a block speaks for a step is the similarity of their
texts; how much a moment speaks for a boundary is the pause before the next block. Blocks before the first step and
after the last may stay unassigned, such as an annotator's `start` and `Done`: how much a block speaks for that is a
price, and the similarity of its text to such bookkeeping. All weights are in log-odds, so that the posterior over
paths is a probability: they were fitted by maximum likelihood on halves of data sets (docs/benchmarks.md). The
answer is the path with the most blocks expected to be right; a step's confidence is the share of its blocks expected
to be right.
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

BOOKKEEPING = ("start", "begin", "the recording starts", "end", "done", "the recording ends")
"""What annotators write at the ends of a recording, which is not part of the task."""

OUTSIDE = -1
"""In place of a step: the block belongs to none."""

_NEVER = -1e6
"""Log-odds of what cannot be; finite, so that differences are."""


class AlignerSettings(Settings):
    """The weights of the aligner's evidence."""

    similarity_weight: float = 3.9
    """Log-odds for one unit of cosine similarity."""
    pause_weight: float = 5.6
    """Log-odds for one unit of log(1 + pause / mean pause)."""
    outside_price: float = -7.4
    """Log-odds for a block before or after all steps to stay unassigned."""
    outside_weight: float = 13.4
    """Log-odds for one unit of cosine similarity to bookkeeping (`start`, `done`) to stay unassigned."""
    blocks_per_step: int = 1
    """Containers (blocks.py) are opened while there are fewer blocks than this for each step."""
    spans: SpanSettings = SpanSettings()


@dataclass(frozen=True)
class Alignment:
    """A monotone assignment of blocks to all steps."""

    assignment: tuple[int, ...]
    """Index of each block's step, or `OUTSIDE` at the two ends; every step has a block."""
    confidences: tuple[float, ...]
    """One in [0, 1] for each step."""


@dataclass(frozen=True)
class Evidence:
    """The evidence for an alignment, without weights."""

    similarity: Floats
    """[B, K] cosine between a block's text and a step's."""
    pauses: Floats
    """[B - 1] pause between each block and the next one (`pauses_between`)."""
    bookkeeping: Floats
    """[B] largest cosine between a block's text and one of `BOOKKEEPING`."""

    def weighted(self, settings: AlignerSettings) -> "Scores":
        """The same in log-odds."""
        return Scores(
            settings.similarity_weight * self.similarity,
            settings.pause_weight * self.pauses,
            settings.outside_price + settings.outside_weight * self.bookkeeping,
        )


@dataclass(frozen=True)
class Scores:
    """Weighted evidence, in log-odds."""

    steps: Floats
    """[B, K] of blocks on steps."""
    boundaries: Floats
    """[B - 1] of boundaries behind blocks."""
    outside: Floats
    """[B] of blocks that stay unassigned."""

    def padded(self) -> tuple[Floats, Floats]:
        """[B + 2, K + 2] and [B + 1] with a state before the steps and one behind them.

        A path of chain.py leaves no state out, so each of the two has a block that is not there.
        """
        blocks, steps = self.steps.shape
        table = np.full((blocks + 2, steps + 2), _NEVER)
        table[1:-1, 1:-1] = self.steps
        table[1:-1, 0] = table[1:-1, -1] = self.outside
        table[0, 0] = table[-1, -1] = 0
        return table, np.pad(self.boundaries, 1)


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
    return decode(evidence(steps, blocks, encoder, settings.spans).weighted(settings))


def evidence(
    steps: Sequence[str],
    blocks: Sequence[Annotation],
    encoder: SentenceEncoder,
    settings: SpanSettings,
) -> Evidence:
    """Compute the evidence of the blocks' texts and times."""
    texts = [block.text for block in blocks]
    vectors, names, bookkeeping = (encoder.embed(each).astype(np.float64) for each in (texts, steps, BOOKKEEPING))
    return Evidence(vectors @ names.T, pauses_between(blocks, settings), (vectors @ bookkeeping.T).max(1))


def pauses_between(blocks: Sequence[Annotation], settings: SpanSettings) -> Floats:
    """[B - 1] log(1 + pause / mean pause of the video): the unit is the video's own, so any pace of work counts.

    A pause is the time from the end of all blocks so far to the next start; all zeros without any pause. At most
    8 mean pauses count: where lines are dense the mean is tiny, and one break must not overrule all text.
    """
    starts = np.array([block.start for block in blocks])
    ends = np.maximum.accumulate(block_ends(blocks, settings))
    pauses = np.maximum(starts[1:] - ends[:-1], 0)
    return np.log1p(np.minimum(pauses / pauses.mean(), _LONGEST_PAUSE)) if pauses.any() else np.zeros_like(pauses)


def decode(scores: Scores) -> Alignment:
    """The path with the largest expected number of right blocks.

    It is better than the single most probable path where pauses say little and texts repeat (docs/benchmarks.md):
    thousands of paths are then nearly as probable, and the most probable one is an extreme.
    """
    table, boundaries = scores.padded()
    posterior = marginals(table, boundaries).steps
    path = best_path(posterior, np.zeros_like(boundaries))[1:-1] - 1
    path[path == scores.steps.shape[1]] = OUTSIDE
    return Alignment(tuple(path.tolist()), _confidences(path, scores, posterior))


def support(
    assignment: Sequence[int],
    steps: Sequence[str],
    blocks: Sequence[Annotation],
    encoder: SentenceEncoder,
    settings: AlignerSettings,
) -> tuple[float, ...]:
    """One confidence in [0, 1] for each step of a given assignment, such as a language model's."""
    scores = evidence(steps, blocks, encoder, settings.spans).weighted(settings)
    return _confidences(np.asarray(assignment), scores, marginals(*scores.padded()).steps)


def _confidences(path: NDArray[np.intp], scores: Scores, posterior: Floats) -> tuple[float, ...]:
    """The share of each step's blocks that are expected to be right.

    With as many blocks as steps only one path is possible, and its posterior says nothing: there a block's confidence
    is its probability against staying unassigned.
    """
    inside = np.flatnonzero(path != OUTSIDE)
    steps = path[inside]
    if len(path) == scores.steps.shape[1]:
        of_block = 1 / (1 + np.exp(scores.outside[inside] - scores.steps[inside, steps]))
    else:
        of_block = posterior[inside + 1, steps + 1]
    return tuple(np.clip(np.bincount(steps, of_block) / np.bincount(steps), 0, 1).tolist())
