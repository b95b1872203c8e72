"""What dialogues contribute to all scores, and the draws of a bootstrap over their videos."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from prospect.evaluation.intervals import draw_counts
from prospect.evaluation.measures.decisions import Head, RankedCounts, Readings, rank, rank_latencies
from prospect.evaluation.records import VideoDecisions
from prospect.evaluation.tally import Floats, Tally

_MOST_CELLS = 1_000_000


@dataclass(frozen=True)
class CountedDialogue:
    """What one dialogue contributes to all scores."""

    video: VideoDecisions
    tally: Tally
    readings: Mapping[Head, Readings]
    labels: Mapping[str, tuple[int, int]]
    """Label -> utterances of the reference that have it, and those of them that a correct one meets."""
    pairs: tuple[tuple[str, str], ...]
    """Correct pairs of texts (system's, reference's)."""


@dataclass(frozen=True)
class Draws:
    """B draws of dialogues, each as often as its video was drawn."""

    counted: Sequence[CountedDialogue]
    weights: Floats
    """[B, dialogues]."""

    @classmethod
    def whole(cls, counted: Sequence[CountedDialogue]) -> "Draws":
        """A single draw that takes every dialogue once."""
        return cls(counted, np.ones((1, len(counted))))

    @classmethod
    def of_videos(cls, counted: Sequence[CountedDialogue], samples: int, seed: int) -> "Draws":
        """`samples` draws of as many videos as there are, with replacement; equal for equal videos and seed.

        Videos and not dialogues, because dialogues of one video are not independent samples.
        """
        videos = sorted({one.video.video for one in counted})
        owner = [videos.index(one.video.video) for one in counted]
        return cls(counted, draw_counts(len(videos), samples, seed)[:, owner])

    @cached_property
    def tally(self) -> Tally:
        """Sums [B]."""
        names = self.counted[0].tally.names if self.counted else ()
        columns = np.stack([one.tally.columns() for one in self.counted]) if self.counted else np.zeros((0, 0))
        return Tally.from_columns(names, self.weights @ columns)

    def parts(self) -> Iterator["Draws"]:
        """The draws in portions, so that a column for each frame fits in memory."""
        frames = sum(len(one.readings["speak"].probabilities) for one in self.counted)
        rows = max(1, _MOST_CELLS // max(1, frames))
        for start in range(0, len(self.weights), rows):
            yield Draws(self.counted, self.weights[start : start + rows])

    def ranked(self, head: Head) -> RankedCounts:
        """Decided frames by probability."""
        return rank([one.readings[head] for one in self.counted], self.weights)

    def latencies(self, head: Head) -> tuple[Floats, Floats]:
        """Distinct latencies in seconds [G], rising, and how often each was drawn [B, G]."""
        return rank_latencies([one.readings[head] for one in self.counted], self.weights)
