"""One live stream, its control flow written straight down: it yields tokens to feed and receives hidden states.

The engine batches the feeds of all sessions; a session knows nothing of the others.
"""

from collections import deque
from collections.abc import Generator
from dataclasses import replace

import numpy as np
from torch import Tensor

from prospect.dialogue.sequence import user_block
from prospect.dialogue.state import Delta, TaskState
from prospect.dialogue.timeline import FrameEvents
from prospect.errors import SessionError
from prospect.streaming.kv_cache.block_table import BlockTable
from prospect.streaming.runner.requests import Feed, Reading, Reply, Run
from prospect.streaming.session.decisions import DecisionGate, DecisionPolicy, read_state, speak_after_delta
from prospect.streaming.session.log import Segment, SessionLog
from prospect.streaming.session.sampling import RandomState
from prospect.streaming.session.shared import Counters, SessionParts
from prospect.streaming.session.window import Window
from prospect.streaming.session.writer import Writer
from prospect.streaming.types import Decision, Event, SessionSpec

QueuedFrame = tuple[np.ndarray, tuple[str, ...]]
"""A frame's features [I, D] and what the user said before it."""


class Session:
    """State, cache and queue of one stream.

    Args:
        parts: what it shares with the others.
        spec: what it starts from.
        cache: its own.
        policy: the thresholds that it decides by.
        randomness: its own; drawn from where texts are sampled.

    Attributes:
        outbox: events that the engine has not collected yet.
        history: events of the last frames at which something happened.
        epoch: how many engines had the session before.
    """

    def __init__(
        self, parts: SessionParts, spec: SessionSpec, cache: BlockTable, policy: DecisionPolicy, randomness: RandomState
    ) -> None:
        self._parts = parts
        self.spec = spec
        self.cache = cache
        self.state = spec.state or TaskState.initial(len(spec.steps))
        self.counters = Counters()
        self.history: dict[int, FrameEvents] = {}
        self.outbox: list[Event] = []
        self.frames: deque[QueuedFrame] = deque()
        self.texts: list[str] = []
        self.num_pushed = self.epoch = 0
        self.patched = self.forgot = False
        self._restraint = DecisionGate(policy)
        self._randomness = randomness
        self._writer = Writer(parts, cache, policy.sampling, randomness, self.outbox, self.counters)
        self._window = Window(parts, spec, cache, self._writer)
        self._window.check_room(self.state)

    @property
    def decides(self) -> DecisionPolicy:
        """The thresholds that the session decides by."""
        return self._restraint.policy

    @property
    def segment(self) -> Segment | None:
        """What stands in the cache; None until the first context is made."""
        return self._window.segment

    # What the engine calls ---------------------------------------------------------------------------------

    def push_frame(self, embedding: np.ndarray) -> int:
        """Queues a frame; returns its index in the stream."""
        self.frames.append((embedding, tuple(self.texts)))
        self.texts.clear()
        self.num_pushed += 1
        return self.num_pushed - 1

    def push_text(self, text: str) -> None:
        """The text joins the next frame that is pushed and not yet decided.

        Raises:
            SessionError: empty, or longer than a context can hold beside it.
        """
        if not text.strip():
            raise SessionError("text: is empty", field="text")
        length = sum(len(user_block(self._parts.vocabulary, each)) for each in (text, *self.texts))
        room = self._window.room_for_text(self.state)
        if length > room:
            raise SessionError(f"text: takes {length} tokens, this session has room for {room}", field="text")
        self.texts.append(text)

    def patch_state(self, state: TaskState) -> None:
        """Somebody else knows better; the context is rebuilt before the next frame."""
        self.state = self._window.opening = state
        self._window.stale = self.patched = True

    def export(self) -> SessionLog:
        """Everything but keys and values; call it between frames."""
        window = self._window
        assert window.segment is not None
        return SessionLog(
            spec=self.spec,
            restraint=replace(self._restraint),
            randomness=replace(self._randomness),
            state=self.state,
            opening=window.opening,
            segment=window.segment,
            history=dict(self.history),
            forgot=self.forgot,
            said=list(window.said),
            summary=window.summary,
            texts=list(self.texts),
            tail=list(window.tail),
            counters=replace(self.counters),
            stale=window.stale,
            patched=self.patched,
            epoch=self.epoch,
        )

    @property
    def step_vectors(self) -> Tensor | None:
        """[K, W] of the steps that stand in the context; they belong to what is in the cache."""
        return self._window.step_vectors

    def restore(self, log: SessionLog, step_vectors: Tensor | None = None) -> None:
        """Continues `log`, from which the policy and the random numbers come too.

        `start` then rebuilds the cache, unless it was put back; that comes with its step vectors.
        """
        window = self._window
        self.state, self.history, self.texts = log.state, dict(log.history), list(log.texts)
        self.forgot, self.patched, self.epoch = log.forgot, log.patched, log.epoch + 1
        self._restraint = replace(log.restraint)
        vars(self.counters).update(vars(log.counters))
        self.num_pushed = log.counters.frames
        window.segment, window.opening, window.summary = log.segment, log.opening, log.summary
        window.stale = log.stale
        window.said.clear()
        window.said.extend(log.said)
        window.tail.extend(log.tail)
        window.take_back(step_vectors)

    def start(self) -> Run:
        """Feeds the first context, or a restored segment's tokens."""
        yield from self._window.start(self.state)

    def decide(self) -> Run:
        """Decides waiting frames in one chunk, up to the first at which something is done; the rest wait again."""
        yield from self._make_room()
        frames, ids, ends = self._catch_up()
        start = self.cache.length
        rows = np.concatenate([embedding for embedding, _ in frames])
        reply = yield Feed(ids, rows, kind="frame", decide_at=tuple(ends), step_vectors=self._window.step_vectors)
        for index, (embedding, texts) in enumerate(frames):
            behind = start + ends[index] + 1
            acted = yield from self._decide_at(embedding, texts, reply.readings[index], behind)
            if (acted or self._window.stale) and index + 1 < len(frames):
                if not acted:
                    self.cache.truncate(behind)
                self.frames.extendleft(reversed(frames[index + 1 :]))
                return

    # Frames ------------------------------------------------------------------------------------------------

    def _make_room(self) -> Run:
        refreshed = yield from self._window.make_room(self.counters.frames, self.frames[0][1], self.state)
        if refreshed is not None:
            self.counters.refreshes += 1
            self.outbox.append(refreshed)

    def _catch_up(self) -> tuple[list[QueuedFrame], list[int], list[int]]:
        """Takes waiting frames with their tokens and the index of each one's last image token.

        The first has its room; a later one comes along if it needs no new context even then.
        """
        parts = self._parts
        taken: list[QueuedFrame] = []
        ids: list[int] = []
        ends: list[int] = []
        while self.frames and len(taken) < parts.catch_up_frames:
            if taken and not self._window.holds(len(ids), self.frames[0][1]):
                break
            taken.append(self.frames.popleft())
            ids += [token for text in taken[-1][1] for token in user_block(parts.vocabulary, text)]
            ids += parts.builder.image_block()
            ends.append(len(ids) - 1)
        return taken, ids, ends

    def _decide_at(
        self, embedding: np.ndarray, texts: tuple[str, ...], reading: Reading, behind: int
    ) -> Generator[Feed, Reply, bool]:
        """Decides one frame, whose image ends before position `behind`; returns whether the cache changed there."""
        frame, tracked, lm_head_before = self.counters.frames, self.spec.tracked, self.counters.lm_head_calls
        p = reading.probabilities
        p_speak, p_update = p.speak, p.update if tracked else 0.0
        readout = self._read_out(reading)
        wanted = None if self.decides.dst_decoder == "generate" else readout or self.state
        delta: Delta = ()
        updates = tracked and self._restraint.updates(p_update) and self._writer.has_delta(self.state, wanted)
        if updates:
            self.cache.truncate(behind)
            delta, after = yield from self._update(wanted)
            p_speak = speak_after_delta(self._parts.model, p, after)
        utterance, silence = None, self._restraint.silence(p_speak, frame, bool(texts), bool(delta))
        if silence is None:
            if not updates:
                self.cache.truncate(behind)
            utterance = yield from self._writer.utterance(frame)
        fast = self.counters.lm_head_calls == lm_head_before
        self._finish(embedding, FrameEvents(texts, delta, utterance), fast)
        self.outbox.append(Decision(frame, p_speak, p_update, self.state, delta, utterance, readout, fast, silence))
        return updates or silence is None

    def _update(self, wanted: TaskState | None) -> Generator[Feed, Reply, tuple[Delta, Tensor]]:
        """Moves the state by a delta that the model writes, or to `wanted`, which the state head reads off."""
        if wanted is None:
            delta, after = yield from self._writer.delta(self.state)
        else:
            delta, after = yield from self._writer.given_delta(self.state, wanted)
        self.state, late = self.state.apply(delta, self._parts.policy)  # the state may have been set meanwhile
        return tuple(transition for transition in delta if transition not in late), after

    def _read_out(self, reading: Reading) -> TaskState | None:
        if reading.states is None or not self.spec.tracked:
            return None
        return read_state(reading.states, self._window.shown, self.state)

    def _finish(self, embedding: np.ndarray, events: FrameEvents, fast: bool) -> None:
        frame = self.counters.frames
        self._window.decided(embedding, events)
        self._restraint.acted(frame, bool(events.delta), events.utterance is not None)
        if events != FrameEvents():
            self.history[frame] = events
        if len(self.history) > self._parts.history_events:
            del self.history[next(iter(self.history))]
            self.forgot = True
        self.counters.frames += 1
        self.counters.fast_frames += fast
