"""The scheduler: whose tokens run in a step."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from prospect.streaming.kv_cache.block_table import BlockTable
from prospect.streaming.runner.requests import Feed, FeedGenerator, FeedKind

ORDER: dict[FeedKind, int] = {"frame": 0, "context": 1, "text": 2}
"""Rank of each kind: frames first, so that contexts and texts of other sessions do not delay a decision."""


@dataclass
class Job:
    """A session's running generator, and the feed whose reply it waits for."""

    session_id: str
    generator: FeedGenerator
    table: BlockTable
    feed: Feed
    hidden: list[torch.Tensor] = field(default_factory=list)
    """Hidden states of the tokens fed so far, in parts."""
    fed: int = 0
    """Tokens fed so far."""
    features_fed: int = 0
    """Image tokens among them."""
    waited: int = 0
    """Consecutive steps in which others ran and this job did not."""

    @property
    def num_left(self) -> int:
        return len(self.feed.ids) - self.fed


@dataclass(frozen=True)
class Scheduler:
    """Shares a budget of tokens a step by kind of feed; every `patience` steps of waiting move a job up one kind.

    A context runs in the same step as frames as far as tokens are left. Among jobs of equal rank the one that has
    waited longest goes first, so no job starves. Jobs that were moved up to the rank of frames take at most half a
    step from them together. Long feeds, such as contexts, share `shared_tokens` of a step in which others run.

    Args:
        step_tokens: most tokens of a step.
        chunk_tokens: most tokens of one session in a step.
        shared_tokens: most tokens of all feeds that have more of them left, where there are shorter ones.
        patience: steps of waiting that move a job up one kind.
    """

    step_tokens: int
    chunk_tokens: int
    shared_tokens: int
    patience: int

    def choose(self, jobs: Iterable[Job]) -> list[tuple[Job, int]]:
        """Return the jobs that run, and how many tokens of each; count one step of waiting for the others."""
        ranked = sorted(jobs, key=self._rank)
        frames = [job for job in ranked if job.feed.kind == "frame"]
        overdue = [job for job in ranked if job.feed.kind != "frame" and self._rank(job)[0] <= ORDER["frame"]]
        given, most = Counter[str](), self._most(ranked)
        self._give(overdue, self.step_tokens // 2, given, most)
        for group in (frames, ranked):
            self._give(group, self.step_tokens - given.total(), given, most)
        for job in ranked:
            job.waited = 0 if given[job.session_id] else job.waited + 1
        return [(job, given[job.session_id]) for job in ranked if given[job.session_id]]

    def _most(self, ranked: Sequence[Job]) -> dict[str, int]:
        """Most tokens that each job may be given: a chunk, and where others would wait for a long one, less."""
        most = {job.session_id: min(job.num_left, self.chunk_tokens) for job in ranked}
        long = [job for job in ranked if job.num_left > self.shared_tokens]
        if len(long) < len(ranked):
            left = self.shared_tokens
            for job in long:
                most[job.session_id] = min(most[job.session_id], left)
                left -= most[job.session_id]
        return most

    def _give(self, jobs: Iterable[Job], budget: int, given: Counter[str], most: Mapping[str, int]) -> None:
        """Add to the tokens that each job was given, up to its most."""
        for job in jobs:
            num_tokens = min(most[job.session_id] - given[job.session_id], budget)
            given[job.session_id] += num_tokens
            budget -= num_tokens

    def _rank(self, job: Job) -> tuple[int, int]:
        return ORDER[job.feed.kind] - job.waited // self.patience, -job.waited
