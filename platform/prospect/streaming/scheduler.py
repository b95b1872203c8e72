"""Whose tokens run in a step."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch

from prospect.streaming.feeds import Feed, FeedKind, Run
from prospect.streaming.pages import BlockTable

ORDER: dict[FeedKind, int] = {"frame": 0, "context": 1, "text": 2}
"""Frames first, so that no other session's context or utterance delays a decision."""


@dataclass
class Job:
    """A session's running generator with the feed that it waits for."""

    session_id: str
    run: Run
    table: BlockTable
    feed: Feed
    hidden: list[torch.Tensor] = field(default_factory=list)
    """Of the tokens fed so far, in parts."""
    fed: int = 0
    rows_fed: int = 0
    waited: int = 0
    """Steps in which it did not run although others did."""

    @property
    def num_left(self) -> int:
        return len(self.feed.ids) - self.fed


@dataclass(frozen=True)
class Scheduler:
    """A budget of tokens a step, given in order of kind; every `patience` steps of waiting move a job up one kind.

    So a context runs in the same step as frames as far as tokens are left, and whatever the load nobody waits for
    ever: behind jobs of its own rank the one that has waited longest goes first.
    """

    step_tokens: int
    chunk_tokens: int
    patience: int

    def choose(self, jobs: Iterable[Job]) -> list[tuple[Job, int]]:
        """Who runs, and how many of its tokens; the others have waited one step more."""
        chosen: list[tuple[Job, int]] = []
        left = self.step_tokens
        for job in sorted(jobs, key=self._rank):
            num_tokens = min(job.num_left, left, self.chunk_tokens)
            if num_tokens:
                chosen.append((job, num_tokens))
                job.waited = 0
                left -= num_tokens
            else:
                job.waited += 1
        return chosen

    def _rank(self, job: Job) -> tuple[int, int]:
        return ORDER[job.feed.kind] - job.waited // self.patience, -job.waited
