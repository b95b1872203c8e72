"""The context window: what a session's cache holds, a context and the frames after it, rebuilt when it is full."""

from collections import deque
from collections.abc import Generator
from dataclasses import replace
from typing import TypeVar

import numpy as np
from torch import Tensor

from prospect.dialogue.prompt import Context
from prospect.dialogue.sequence import user_block
from prospect.dialogue.state import TaskState
from prospect.dialogue.timeline import FrameEvents
from prospect.errors import SessionError
from prospect.streaming.kv_cache.block_table import BlockTable
from prospect.streaming.runner.requests import Feed, FeedGenerator, Reply
from prospect.streaming.session.log import Segment
from prospect.streaming.session.shared import SessionParts
from prospect.streaming.session.strategies import (
    ContextInputs,
    ContextPlan,
    frames_within,
    full_reserve,
    longest_tail,
    oracle_state,
    plan_context,
    plan_opening,
    session_context,
    strategy_of,
    summary_line,
    summary_question,
)
from prospect.streaming.session.writer import Writer
from prospect.streaming.types import Refreshed, SessionSpec

T = TypeVar("T")


def _without(items: list[T], part: slice) -> list[T]:
    return items[: part.start] + items[part.stop :]


class ContextWindow:
    """A session's context and the frames after it, with what the next context is made from.

    Attributes:
        segment: what the cache holds; None until the first context is fed.
        said: the last utterances, as many as a context repeats.
        tail: features of the last frames, as many as a context shows again.
        summary: of the progress; None: the model was never asked for one.
        opening: the state that the session opened with, or that a client last set.
        stale: whether the context must be rebuilt before the next frame.
        shown: recipe indices of the steps in the context, if the state head can read them.
        step_vectors: [K, W] of these steps.
    """

    def __init__(self, parts: SessionParts, spec: SessionSpec, cache: BlockTable, writer: Writer) -> None:
        self._parts, self._spec, self._cache, self._writer = parts, spec, cache, writer
        self._strategy = strategy_of(parts.context)
        self.segment: Segment | None = None
        self.said: deque[tuple[str, str]] = deque(spec.utterances, maxlen=parts.context.last_utterances)
        self.tail: deque[np.ndarray] = deque(maxlen=parts.context.max_tail_frames)
        self.summary = spec.summary
        self.opening = spec.state or TaskState.initial(len(spec.steps))
        self.stale = False
        self.shown: list[int] = []
        self.step_vectors: Tensor | None = None
        self._reserve = full_reserve(parts.builder, len(spec.steps))

    # Room --------------------------------------------------------------------------------------------------

    def check_room(self, state: TaskState) -> None:
        """Raise SessionError if a new context leaves no room for a frame."""
        if self.room_for_text(state) < 0:
            raise SessionError(
                "session: goal, steps and knowledge must leave room for a frame; "
                "shorten them or raise context.max_seq_len",
                field="knowledge",
            )

    def room_for_text(self, state: TaskState) -> int:
        """Return the tokens that the user's text before one frame may take, whenever the context is rebuilt.

        A rebuilt context can leave out utterances; each step's label may take two tokens more by then.
        """
        text = self._context(ContextPlan(state)).num_text + 2 * len(self._spec.steps)
        tail = longest_tail(self._parts.context) * self._parts.builder.tokens_per_frame
        summary = summary_line(self._parts.context)
        return self._parts.context.max_seq_len - text - summary - tail - self._reserve

    def fits(self, num_tokens: int, texts: tuple[str, ...]) -> bool:
        """Return whether a frame fits after `num_tokens` more tokens, with the user's texts and the longest answer."""
        needed = num_tokens + self._needed(texts)
        return self._cache.length + needed <= self._parts.context.max_seq_len and not self._strategy.stateless

    def _needed(self, texts: tuple[str, ...]) -> int:
        return self._reserve + sum(len(user_block(self._parts.vocabulary, text)) for text in texts)

    # Contexts ----------------------------------------------------------------------------------------------

    def start(self, state: TaskState) -> FeedGenerator:
        """Feed the first context, or the tokens of a restored segment."""
        if self.segment is not None:
            yield from self._feed(self.segment)
            return
        room = self._parts.context.max_seq_len - self._needed(())
        yield from self._open(plan_opening(self._parts.context, self._inputs(state, room)), room, 0)

    def make_room(
        self, frame: int, texts: tuple[str, ...], state: TaskState
    ) -> Generator[Feed, Reply, Refreshed | None]:
        """Rebuild the context if it is stale or `frame` might not fit; return the event that says so."""
        if self._strategy.stateless and self._start_over(frame, state):
            return None
        if not self.stale and self.fits(0, texts):
            return None
        before, patched = self._cache.length, self.stale
        self.stale = False  # before feeding: a patch that comes meanwhile makes it stale again
        asked = bool(self._strategy.asks) and not patched
        if asked:
            yield from self._summarise(frame, state)
        room = self._parts.context.max_seq_len - self._needed(texts)
        if patched or not (self._strategy.cuts and self._cut(room)):
            plan = plan_context(self._parts.context, self._inputs(state, room), patched)
            yield from self._open(plan, room, frame)
        return Refreshed(frame, before, self._cache.length, self.summary if asked else None, asked and self._oracle)

    def add_frame(self, embedding: np.ndarray, events: FrameEvents) -> None:
        """Note a decided frame: its features [I, D] and its events are in the cache."""
        assert self.segment is not None
        self.segment.frames.append(embedding)
        self.segment.events.append(events)
        self.tail.append(embedding)
        self.said.extend(events.turns)

    def _start_over(self, frame: int, state: TaskState) -> bool:
        """Drop the frames after the context, if a new context would show the same state; return whether it did."""
        assert self.segment is not None
        if self.stale or plan_context(self._parts.context, self._inputs(state, 0), False).state != self.segment.state:
            return False
        self._cache.truncate(len(self.segment.context.ids))
        self.segment = Segment(self.segment.context, frame, self.segment.state, self.segment.tail)
        return True

    def _open(self, plan: ContextPlan, room: int, frame: int) -> FeedGenerator:
        self._cache.truncate(0)
        past, kept = self.segment, plan.kept_frames
        tail = list(self.tail)[len(self.tail) - plan.tail_frames :]
        lengths = self._lengths()
        context = self._context(plan, room - sum(lengths[len(lengths) - kept :]))
        self.segment = Segment(context, frame - kept, plan.state, tail)
        if past is not None and kept:
            self.segment.frames, self.segment.events = past.frames[-kept:], past.events[-kept:]
        yield from self._feed(self.segment)

    def _feed(self, segment: Segment) -> FeedGenerator:
        """Feed a segment to the empty cache; nothing in it is decided again."""
        parts, frames = self._parts, [*segment.tail, *segment.frames]
        ids = segment.sequence(parts.builder).ids
        if not ids:
            self.shown, self.step_vectors = [], None
            return
        reply = yield Feed(
            ids, np.concatenate(frames) if frames else None, kind="context", num_shareable=segment.context.num_text
        )
        self._take_step_vectors(segment.context, reply.hidden)

    def restore_step_vectors(self, step_vectors: Tensor | None) -> None:
        """Set the step vectors of a segment whose keys and values were put back."""
        assert self.segment is not None
        self.shown, self.step_vectors = self._steps_shown(self.segment.context), step_vectors

    def _steps_shown(self, context: Context) -> list[int]:
        """Return the recipe indices of the steps in the context; none if the state head is untrained."""
        trained = (self._parts.model.config.trained_steps or {}).get("dst_state", 0) > 0
        return [step for step, position in enumerate(context.step_positions) if position >= 0 and trained]

    def _take_step_vectors(self, context: Context, hidden: Tensor) -> None:
        model = self._parts.model
        self.shown = self._steps_shown(context)
        at_lines = hidden[[context.step_positions[step] for step in self.shown]]
        self.step_vectors = model.dst_state_head.step_vectors(at_lines) if self.shown else None

    def _cut(self, room: int) -> bool:
        """Remove the middle of the cache and leave later keys at their old positions.

        The prompt stays with the frames up to the first text of the user, and so do the last tokens, in whole frames.
        Returns False, with nothing removed, if the user has said nothing or if that would not leave enough room.
        """
        segment, lengths = self.segment, self._lengths()
        assert segment is not None
        first = next((i for i, events in enumerate(segment.events, 1) if events.user), None)
        if first is None:
            return False
        kept = min(frames_within(lengths, self._parts.context.keep_last_tokens), len(lengths) - first)
        start = len(segment.context.ids) + sum(lengths[:first])
        stop = self._cache.length - sum(lengths[len(lengths) - kept :])
        if start + self._cache.length - stop > room:
            return False
        self._cache.cut(start, stop)
        past = slice(first, len(lengths) - kept)
        self.segment = replace(segment, frames=_without(segment.frames, past), events=_without(segment.events, past))
        return True

    # Summaries ---------------------------------------------------------------------------------------------

    @property
    def _oracle(self) -> bool:
        return self._parts.context.published and self._strategy.asks == "state" and bool(self._spec.oracle)

    def _summarise(self, frame: int, state: TaskState) -> FeedGenerator:
        """Ask the model for a summary; the question shows the last frame once more. Skipped if it does not fit."""
        parts, settings = self._parts, self._parts.context
        images = [*self.segment.tail, *self.segment.frames] if self.segment is not None else []
        known = oracle_state(self._spec, frame, parts.policy) if self._oracle else state
        question = summary_question(parts.builder, self._strategy, known)
        if not images or self._cache.length + len(question) + settings.max_summary_tokens + 1 > settings.max_seq_len:
            return
        if settings.published and not (yield from self._wants_to_speak(question, images[-1])):
            self.summary = None
            return
        summary = yield from self._writer.generate_summary(question, images[-1], settings.max_summary_tokens)
        self.summary = summary or self.summary

    def _wants_to_speak(self, question: list[int], image: np.ndarray) -> Generator[Feed, Reply, bool]:
        """As published: a model that decides to stay silent when it is asked gives an empty summary."""
        length = self._cache.length
        reply = yield Feed(question, image, decide_at=(len(question) - 1,))
        self._cache.truncate(length)
        return reply.readings[0].p_speak > 0.5

    # Helpers -----------------------------------------------------------------------------------------------

    def _lengths(self) -> list[int]:
        events = self.segment.events if self.segment is not None else []
        return [self._parts.builder.frame_length(each) for each in events]

    def _inputs(self, state: TaskState, room: int) -> ContextInputs:
        """Collect what a new context can be made from; `room` is the most tokens of the whole context."""
        prompt = self._context(ContextPlan(state)).num_text + 2 * len(self._spec.steps)
        seen = ContextInputs(self.opening, state, tuple(self.said), len(self.tail), self.summary, room=room - prompt)
        if self.segment is None:
            return seen
        before, states = self.segment.state, []
        for events in self.segment.events:
            states.append(before)
            before, _ = before.apply(events.delta, self._parts.policy)
        return ContextInputs(**{**vars(seen), "lengths": self._lengths(), "states": states})

    def _context(self, plan: ContextPlan, room: int | None = None) -> Context:
        return session_context(self._parts.builder, self._spec, plan, room)
