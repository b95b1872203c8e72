"""The executor: runs the feeds that sessions yield, and sends the replies back."""

from collections.abc import Callable, Sequence

import torch

from prospect.model.interface import DSTModel
from prospect.streaming.attention.interface import Chunk
from prospect.streaming.kv_cache.block_table import BlockTable
from prospect.streaming.runner.forward import Trunk, read_heads
from prospect.streaming.runner.requests import FeedGenerator, Reading, Reply
from prospect.streaming.runner.scheduler import Job, Scheduler


class Executor:
    """Drives the generators of all sessions at work, one ragged forward pass a step.

    Args:
        model: whose heads are read.
        trunk: one forward pass for chunks of many sessions.
        scheduler: chooses whose tokens run in a step.
        one_by_one: whether heads and `lm_head` run for one token at a time, for batch invariance.
        on_failure: called with a session's id and its error; other sessions go on.

    Attributes:
        num_tokens: tokens that ran through the trunk so far.
        lm_head_rows: hidden states that ran through `lm_head` so far.
    """

    def __init__(
        self,
        model: DSTModel,
        trunk: Trunk,
        scheduler: Scheduler,
        one_by_one: bool,
        on_failure: Callable[[str, Exception], None],
    ) -> None:
        self._model, self._trunk, self._scheduler = model, trunk, scheduler
        self._one_by_one, self._on_failure = one_by_one, on_failure
        self._image = (model.config.grammar_ids or {})["<image>"]
        self._jobs: dict[str, Job] = {}
        self.num_tokens = 0
        self.lm_head_rows = 0

    def __contains__(self, session_id: str) -> bool:
        return session_id in self._jobs

    def __len__(self) -> int:
        return len(self._jobs)

    def drop(self, session_id: str) -> None:
        self._jobs.pop(session_id, None)

    @torch.inference_mode()
    def start(self, session_id: str, generator: FeedGenerator, table: BlockTable) -> None:
        """Run a session's generator up to its first feed."""
        self._resume(session_id, generator, table, None)

    @torch.inference_mode()
    def step(self) -> None:
        """Run one ragged forward pass for the scheduled jobs; those whose feed is finished go on to their next feed."""
        chosen = [
            (job, chunk)
            for job, count in self._scheduler.choose(self._jobs.values())
            if (chunk := self._chunk(job, count))
        ]
        if not chosen:
            return
        for (job, chunk), hidden in zip(chosen, self._trunk([chunk for _, chunk in chosen]), strict=True):
            job.hidden.append(hidden)
            job.fed += chunk.num_tokens
            job.features_fed += 0 if chunk.features is None else len(chunk.features)
            self.num_tokens += chunk.num_tokens
        finished = [job for job, _ in chosen if job.num_left == 0]
        for job, reply in zip(finished, self._replies(finished), strict=True):
            self._resume(job.session_id, job.generator, job.table, reply)

    def _chunk(self, job: Job, count: int) -> Chunk | None:
        """Reserve room for a job's next tokens and return them; fail the job and return None where that fails."""
        if job.fed == 0 and job.feed.num_shareable and job.table.length == 0:
            known = job.table.reuse_prefix(job.feed.ids[: job.feed.num_shareable])
            if known is not None:
                job.hidden, job.fed = [known], len(known)
        ids = job.feed.ids[job.fed : job.fed + count]
        try:
            job.table.reserve(len(ids))
        except Exception as error:
            self.drop(job.session_id)
            self._on_failure(job.session_id, error)
            return None
        num_rows = ids.count(self._image)
        if not num_rows:
            return Chunk(job.table, ids)
        assert job.feed.features is not None
        return Chunk(job.table, ids, job.feed.features[job.features_fed : job.features_fed + num_rows])

    def _replies(self, jobs: Sequence[Job]) -> list[Reply]:
        hidden = [torch.cat(job.hidden) if len(job.hidden) > 1 else job.hidden[0] for job in jobs]
        for job, states in zip(jobs, hidden, strict=True):
            if job.feed.num_shareable:
                job.table.share_prefix(job.feed.ids[: job.feed.num_shareable], states)
        readings = self._read(jobs, hidden)
        wanting = [states[-1] for job, states in zip(jobs, hidden, strict=True) if job.feed.wants_logits]
        logits = iter(self._logits(wanting))
        return [
            Reply(states, next(logits) if job.feed.wants_logits else None, read)
            for job, states, read in zip(jobs, hidden, readings, strict=True)
        ]

    def _read(self, jobs: Sequence[Job], hidden: Sequence[torch.Tensor]) -> list[tuple[Reading, ...]]:
        requests = [
            (states[list(job.feed.decide_at)], job.feed.step_vectors)
            for job, states in zip(jobs, hidden, strict=True)
            if job.feed.decide_at
        ]
        if self._one_by_one:
            found = iter(
                [tuple(read_heads(self._model, [(row[None], v)])[0][0] for row in rows) for rows, v in requests]
            )
        else:
            found = iter(read_heads(self._model, requests))
        return [next(found) if job.feed.decide_at else () for job in jobs]

    def _logits(self, hidden: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        """Return logits [V] for each hidden state [H]."""
        self.lm_head_rows += len(hidden)
        if self._one_by_one:
            return [self._model.lm_head(states[None])[0] for states in hidden]
        return self._model.lm_head(torch.stack(list(hidden))).unbind() if hidden else []

    def _resume(self, session_id: str, generator: FeedGenerator, table: BlockTable, reply: Reply | None) -> None:
        self.drop(session_id)
        try:
            feed = generator.send(reply) if reply is not None else next(generator)
        except StopIteration:
            return
        except Exception as error:
            self._on_failure(session_id, error)
            return
        self._jobs[session_id] = Job(session_id, generator, table, feed)
