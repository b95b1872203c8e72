"""Which generated utterance answers which reference: ProAssist's bipartite matching, as published and corrected.

Both forms give generated utterance i and reference j the cost

    s(i, j) + weight * |i - j|^power / max(|left|, right)^power        left <= j - i <= right

with s = 1 - similarity, and s = 1 at a frame whose reference is silent. Every generated utterance gets one
frame. One that gets a silent frame is redundant, and a reference that nobody gets is missed.

`compat` is the published matcher, and gives what it gives for equal similarities. It cannot promise equal scores:
whether the published code counts a verbatim utterance at its own frame is decided by the last bit of a cosine (point
1), which differs between machines and batches. A generated "." is silence there. `corrected` differs in three places:

1. A cost of exactly zero (the right words at the right frame) drops out of a sparse matrix, so the published
   matcher charges a perfect answer as redundant and missed. Here every edge costs `_EPSILON` more, which
   leaves the optimum where it was, because all full matchings have equally many edges.
2. The published similarity is |cosine|: opposite vectors count as equal. Here a negative cosine is 0.
3. The published window truncates t * fps in floating point (0.29 s at 100 fps is 28 frames); here decimals
   have a millionth of a frame of slack, as in `prospect.dialogue.timeline`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import min_weight_full_bipartite_matching

from prospect.dialogue.timeline import FPS
from prospect.evaluation.settings import MatcherMode, MatchingSettings, WindowSeconds
from prospect.similarity import SentenceEncoder

_EPSILON = 1e-6
_FRAME_SLACK = 1e-6


class Match(NamedTuple):
    """A generated utterance and the reference that it was assigned to, however alike they are."""

    generated: int
    """Frame of the generated utterance."""
    reference: int
    """Frame of the reference."""
    similarity: float


@dataclass(frozen=True)
class TurnMatches:
    """Every generated utterance is in `matched` or `redundant`, every reference in `matched` or `missed`."""

    matched: tuple[Match, ...] = ()
    missed: tuple[int, ...] = ()
    redundant: tuple[int, ...] = ()


def match_turns(
    generated: Mapping[int, str],
    reference: Mapping[int, str],
    num_frames: int,
    encoder: SentenceEncoder,
    settings: MatchingSettings | None = None,
    dataset: str = "",
    fps: float = FPS,
) -> TurnMatches:
    """Assigns generated utterances to references, one to one, at the least total cost.

    Args:
        generated: utterances by frame; a frame past the end counts as silent in the reference.
        reference: utterances by frame.
        num_frames: frames of the video.
        encoder: gives the sentence vectors.
        settings: costs, windows and mode.
        dataset: names the window.
        fps: frames a second.
    """
    settings = settings or MatchingSettings()
    rows, references = sorted(generated), sorted(reference)
    if not rows or not references:
        return TurnMatches(missed=tuple(references), redundant=tuple(rows))
    columns = max(num_frames, rows[-1] + 1, references[-1] + 1)
    window = _window_frames(settings.window(dataset), fps, settings.mode)
    vectors = encoder.embed([generated[i] for i in rows] + [reference[j] for j in references])
    cosine = vectors[: len(rows)] @ vectors[len(rows) :].T
    distance = np.arange(columns)[None] - np.array(rows)[:, None]
    inside = (distance >= window[0]) & (distance <= window[1])
    text = _text_cost(cosine, references, inside, settings.mode)
    cost = text + _distance_cost(distance, window, settings)
    assigned = _assign(cost, inside, settings.mode)
    return _matches(rows, references, assigned, 1 - text)


def _window_frames(window: WindowSeconds, fps: float, mode: MatcherMode) -> tuple[int, int]:
    """Whole frames inside the window: int() rounds both ends towards zero."""
    slack = _FRAME_SLACK if mode == "corrected" else 0.0
    left, right = window
    return int(left * fps - slack), int(right * fps + slack)


def _text_cost(
    cosine: NDArray[np.float32], references: list[int], inside: NDArray[np.bool_], mode: MatcherMode
) -> NDArray[np.float32]:
    """float32 [G, T]: 1 - similarity where the reference speaks, 1 where it is silent."""
    similarity = np.abs(cosine) if mode == "compat" else np.clip(cosine, 0, 1)
    cost = np.ones(inside.shape, dtype=np.float32)
    cost[:, references] = 1 - similarity
    return cost


def _distance_cost(
    distance: NDArray[np.int64], window: tuple[int, int], settings: MatchingSettings
) -> NDArray[np.float32]:
    """float32 [G, T]; a window of no width allows distance 0 alone, at no cost."""
    widest = max(-window[0], window[1], 1)
    scale = np.float32(settings.weight / widest**settings.power)
    # Rounded to float32 from the exact power: numpy's own float32 power is off by a bit, and one bit decides ties.
    powers: NDArray[np.float32] = (np.abs(distance).astype(np.float64) ** settings.power).astype(np.float32)
    return powers * scale


def _assign(cost: NDArray[np.float32], inside: NDArray[np.bool_], mode: MatcherMode) -> NDArray[np.int64]:
    """int64 [G]: the column of every row."""
    if mode == "compat":
        published = csr_array(np.where(inside, cost, np.float32(np.inf)))
        try:
            return np.asarray(min_weight_full_bipartite_matching(published)[1])
        except ValueError:
            # So many zero costs were dropped that a full matching is impossible. The published code stops here, so
            # no published figure depends on what follows.
            pass
    edges = coo_array((cost[inside].astype(np.float64) + _EPSILON, np.nonzero(inside)), shape=cost.shape)
    return np.asarray(min_weight_full_bipartite_matching(edges.tocsr())[1])


def _matches(
    rows: list[int], references: list[int], assigned: NDArray[np.int64], similarity: NDArray[np.float32]
) -> TurnMatches:
    """Sorts rows by what they were assigned to; `assigned` is in row order."""
    speaking = set(references)
    taken = {int(column) for column in assigned}
    pairs = list(zip(rows, map(int, assigned), strict=True))
    return TurnMatches(
        matched=tuple(Match(i, j, float(similarity[r, j])) for r, (i, j) in enumerate(pairs) if j in speaking),
        missed=tuple(j for j in references if j not in taken),
        redundant=tuple(i for i, j in pairs if j not in speaking),
    )
