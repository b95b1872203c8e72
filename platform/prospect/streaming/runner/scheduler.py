"""Whose tokens run in a step."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch

from prospect.streaming.kv_cache.block_table import BlockTable
from prospect.streaming.runner.requests import Feed, FeedGenerator, FeedKind

ORDER: dict[FeedKind, int] = {"frame": 0, "context": 1, "text": 2}
"""Frames first, so that no other session's context or utterance delays a decision."""


@dataclass
class Job:
    """A session's running generator with the feed that it waits for."""

    session_id: str
    generator: FeedGenerator
    table: BlockTable
    feed: Feed
    hidden: list[torch.Tensor] = field(default_factory=list)
    """Of the tokens fed so far, in parts."""
    fed: int = 0
    features_fed: int = 0
    waited: int = 0
    """Steps in which it did not run although others did."""

    @property
    def num_left(self) -> int:
        return len(self.feed.ids) - self.fed


@dataclass(frozen=True)
class Scheduler:
    """A budget of tokens a step, given in order of kind; every `patience` steps of waiting move a job up one kind.

    So a context runs in the same step as frames as far as tokens are left, and whatever the load nobody waits for
    ever: behind jobs of its own rank the one that has waited longest goes first. Jobs that were moved up to the
    frames take at most half a step from them, however many they are.
    """

    step_tokens: int
    chunk_tokens: int
    patience: int

    def choose(self, jobs: Iterable[Job]) -> list[tuple[Job, int]]:
        """Who runs, and how many of its tokens; the others have waited one step more."""
        ranked = sorted(jobs, key=self._rank)
        frames = [job for job in ranked if job.feed.kind == "frame"]
        overdue = [job for job in ranked if job.feed.kind != "frame" and self._rank(job)[0] <= ORDER["frame"]]
        given: Counter[str] = Counter()
        self._give(overdue, self.step_tokens // 2, given)
        for group in (frames, ranked):
            self._give(group, self.step_tokens - given.total(), given)
        for job in ranked:
            job.waited = 0 if given[job.session_id] else job.waited + 1
        return [(job, given[job.session_id]) for job in ranked if given[job.session_id]]

    def _give(self, jobs: Iterable[Job], budget: int, given: Counter[str]) -> None:
        """Adds to what each was given, up to its chunk."""
        for job in jobs:
            num_tokens = min(min(job.num_left, self.chunk_tokens) - given[job.session_id], budget)
            given[job.session_id] += num_tokens
            budget -= num_tokens

    def _rank(self, job: Job) -> tuple[int, int]:
        return ORDER[job.feed.kind] - job.waited // self.patience, -job.waited
