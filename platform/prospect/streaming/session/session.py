"""A session: the control flow of one live stream, as a generator that yields feeds and receives replies.

The engine batches the feeds of all sessions; a session does not know the others.
"""

import re
from collections import deque
from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor

from prospect.dialogue.sequence import user_block
from prospect.dialogue.state import Delta, StepState, TaskState
from prospect.dialogue.timeline import FrameEvents
from prospect.errors import SessionError, session_error
from prospect.streaming.features import checked_features
from prospect.streaming.kv_cache.block_table import BlockTable
from prospect.streaming.runner.requests import Feed, FeedGenerator, Reading, Reply
from prospect.streaming.session.decisions import DecisionGate, DecisionPolicy, read_state, speak_after_delta
from prospect.streaming.session.log import QueuedFrame, Segment, SessionLog, Settled, progress_json
from prospect.streaming.session.sampling import RandomState
from prospect.streaming.session.shared import Counters, SessionParts
from prospect.streaming.session.strategies import oracle_state
from prospect.streaming.session.window import ContextWindow
from prospect.streaming.session.writer import Writer
from prospect.streaming.types import Decision, EngineEvent, SessionSpec

_STEP_ID = re.compile("S[1-9][0-9]{0,8}")


class Session:
    """One live stream: its queued frames, its task state, its cache and its context.

    Args:
        parts: what all sessions of an engine share.
        spec: what the session starts from.
        cache: its block table.
        policy: its thresholds.
        randomness: random numbers for sampled texts.

    Attributes:
        state: the tracked task state.
        frames: queued frames.
        texts: of the user; they join the next frame.
        outbox: events that the engine has not collected yet.
        history: events by frame, of the last frames that have any.
        num_pushed: frames pushed so far.
        patched: whether a client ever set the state.
        forgot: whether `history` lacks the first events.
        epoch: number of engines that had the session before.
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
        self.outbox: list[EngineEvent] = []
        self.frames: deque[QueuedFrame] = deque()
        self.texts: list[str] = []
        self.num_pushed = self.epoch = 0
        self.patched = self.forgot = False
        self._in_work: deque[QueuedFrame] = deque()
        """Frames that were taken from the queue and are not decided."""
        self._settled: Settled | None = None
        self._gate = DecisionGate(policy)
        self._randomness = randomness
        self._writer = Writer(parts, cache, policy.sampling, randomness, self.outbox, self.counters)
        self._window = ContextWindow(parts, spec, cache, self._writer)
        self._window.check_room(self.state)

    @property
    def policy(self) -> DecisionPolicy:
        """The session's thresholds."""
        return self._gate.policy

    @property
    def segment(self) -> Segment | None:
        """What the cache holds; None until the first context is fed."""
        return self._window.segment

    # Called by the engine ---------------------------------------------------------------------------------

    def push_frame(self, embedding: np.ndarray) -> int:
        """Queue a frame's features [I, D]; return its index in the stream.

        Raises:
            SessionError: `wrong_shape`, values that are not finite, or `overloaded`.
        """
        config = self._parts.model.config
        embedding = checked_features(embedding, (config.tokens_per_frame, config.vision_dim))
        if len(self.frames) >= self._parts.max_waiting_frames:
            raise session_error("overloaded", f"frame: {len(self.frames)} frames are waiting already", "seq")
        self.frames.append((embedding, tuple(self.texts)))
        self.texts.clear()
        self.num_pushed += 1
        return self.num_pushed - 1

    def push_text(self, text: str) -> None:
        """Add a text of the user to the next frame that is pushed.

        Raises:
            SessionError: the text is empty, or longer than the context has room for.
        """
        self.check_texts((*self.texts, text))
        self.texts.append(text)

    def check_texts(self, texts: Sequence[str]) -> None:
        """Raise SessionError if one text before a frame is empty, or the context has no room for all of them."""
        if not all(text.strip() for text in texts):
            raise SessionError("text: is empty", field="text")
        length = sum(len(user_block(self._parts.vocabulary, each)) for each in texts)
        room = self._window.room_for_text(self.state)
        if length > room:
            raise SessionError(f"text: takes {length} tokens, this session has room for {room}", field="text")

    def patch_state(self, changes: Mapping[str, str]) -> None:
        """Set steps by id, such as {"S2": "completed"}; the context is rebuilt before the next frame.

        Raises:
            SessionError: the recipe has no such step, or no step has such a state; nothing is changed then.
        """
        self.state = self._window.opening = _with_steps(self.state, changes)
        self._window.stale = self.patched = True
        if self._settled is not None:
            state = _with_steps(self._settled.state, changes)
            self._settled = replace(self._settled, state=state, opening=state, stale=True)

    def export(self) -> SessionLog | None:
        """Return everything but keys and values, as it was behind the last decided frame; the others wait.

        None until the first context is fed.
        """
        settled = self._settled
        if settled is None:
            return None
        whole, count = settled.segment, settled.num_frames
        decided = settled.counters.frames
        return SessionLog(
            spec=self.spec,
            gate=replace(settled.gate),
            randomness=replace(settled.randomness),
            state=settled.state,
            opening=settled.opening,
            segment=replace(whole, frames=whole.frames[:count], events=whole.events[:count]),
            history={frame: events for frame, events in self.history.items() if frame < decided},
            forgot=self.forgot,
            said=list(settled.said),
            summary=settled.summary,
            texts=list(self.texts),
            tail=list(settled.tail),
            counters=replace(settled.counters),
            stale=settled.stale,
            patched=self.patched,
            epoch=self.epoch,
            waiting=[*self._in_work, *self.frames],
        )

    def progress(self) -> dict[str, Any] | None:
        """Return what `SessionLog.from_json` takes as `progress`; None until the first context is fed."""
        settled = self._settled
        if settled is None:
            return None
        first = {"first_frame": settled.segment.first_frame}
        return progress_json(settled, self.forgot, self.patched) | first

    def _settle(self) -> None:
        """Note what a log would hold now: a frame is decided, or a context is fed."""
        window = self._window
        assert window.segment is not None
        self._settled = Settled(
            gate=replace(self._gate),
            randomness=replace(self._randomness),
            counters=replace(self.counters),
            state=self.state,
            opening=window.opening,
            segment=window.segment,
            num_frames=len(window.segment.frames),
            said=tuple(window.said),
            summary=window.summary,
            tail=tuple(window.tail),
            stale=window.stale,
        )

    @property
    def step_vectors(self) -> Tensor | None:
        """[K, W] of the steps in the context; they belong to what the cache holds."""
        return self._window.step_vectors

    def restore(self, log: SessionLog, step_vectors: Tensor | None = None) -> None:
        """Continue `log`, with its policy and its random numbers.

        Args:
            log: of the session.
            step_vectors: [K, W], if the cache was put back; without it, `start` rebuilds both.
        """
        window = self._window
        self.state, self.history, self.texts = log.state, dict(log.history), list(log.texts)
        self.forgot, self.patched, self.epoch = log.forgot, log.patched, log.epoch + 1
        self._gate = replace(log.gate)
        vars(self.counters).update(vars(log.counters))
        self.frames.extend(log.waiting)
        self.num_pushed = log.counters.frames + len(log.waiting)
        window.segment, window.opening, window.summary = log.segment, log.opening, log.summary
        window.stale = log.stale
        window.said.clear()
        window.said.extend(log.said)
        window.tail.extend(log.tail)
        window.restore_step_vectors(step_vectors)
        self._settle()

    def start(self) -> FeedGenerator:
        """Feed the first context, or the tokens of a restored segment."""
        yield from self._window.start(self.state)
        self._settle()

    def decide(self) -> FeedGenerator:
        """Feed waiting frames in one chunk and decide them; frames after one that acts are queued again."""
        yield from self._make_room()
        frames, ids, ends = self._catch_up()
        self._in_work.extend(frames)
        start = self.cache.length
        features = np.concatenate([embedding for embedding, _ in frames])
        reply = yield Feed(ids, features, kind="frame", decide_at=tuple(ends), step_vectors=self._window.step_vectors)
        for index, (embedding, texts) in enumerate(frames):
            behind = start + ends[index] + 1
            acted = yield from self._decide_at(embedding, texts, reply.readings[index], behind)
            if (acted or self._window.stale) and index + 1 < len(frames):
                if not acted:
                    self.cache.truncate(behind)
                self.frames.extendleft(reversed(frames[index + 1 :]))
                self._in_work.clear()
                return

    # Frames ------------------------------------------------------------------------------------------------

    def _make_room(self) -> FeedGenerator:
        refreshed = yield from self._window.make_room(self.counters.frames, self.frames[0][1], self.state)
        if refreshed is not None:
            self.counters.refreshes += 1
            self.outbox.append(refreshed)
            self._settle()

    def _catch_up(self) -> tuple[list[QueuedFrame], list[int], list[int]]:
        """Take waiting frames; return them with their tokens and the index of each frame's last image token.

        There is room for the first frame; later ones are taken while they fit into this context.
        """
        parts = self._parts
        taken: list[QueuedFrame] = []
        ids: list[int] = []
        ends: list[int] = []
        while self.frames and len(taken) < parts.catch_up_frames:
            if taken and not self._window.fits(len(ids), self.frames[0][1]):
                break
            taken.append(self.frames.popleft())
            ids += [token for text in taken[-1][1] for token in user_block(parts.vocabulary, text)]
            ids += parts.builder.image_block()
            ends.append(len(ids) - 1)
        return taken, ids, ends

    def _decide_at(
        self, embedding: np.ndarray, texts: tuple[str, ...], reading: Reading, behind: int
    ) -> Generator[Feed, Reply, bool]:
        """Decide one frame, whose image ends before position `behind`; return whether anything was written after it."""
        frame, tracked, lm_head_before = self.counters.frames, self.spec.tracked, self.counters.lm_head_calls
        p_speak, p_update = reading.p_speak, reading.p_update if tracked else 0.0
        readout = self._read_out(reading)
        wanted = self._wanted_state(frame, readout)
        delta: Delta = ()
        allowed = self._gate.allows_update(p_update) or self.spec.told
        updates = tracked and allowed and self._writer.can_write_delta(self.state, wanted)
        if updates:
            self.cache.truncate(behind)
            delta, after = yield from self._update(wanted)
            p_speak = speak_after_delta(self._parts.model, p_speak, after)
        utterance, silence = None, self._gate.silence_reason(p_speak, frame, bool(texts), bool(delta))
        if silence is None:
            if not updates:
                self.cache.truncate(behind)
            utterance = yield from self._writer.generate_utterance(frame)
        fast = self.counters.lm_head_calls == lm_head_before
        self._finish(embedding, FrameEvents(texts, delta, utterance), fast)
        self.outbox.append(Decision(frame, p_speak, p_update, self.state, delta, utterance, readout, fast, silence))
        return updates or silence is None

    def _wanted_state(self, frame: int, readout: TaskState | None) -> TaskState | None:
        """Return the state after a frame, before the model is asked; None: it writes the delta itself."""
        if self.spec.told:
            return oracle_state(self.spec, frame + 1, self._parts.policy)
        return None if self.policy.dst_decoder == "generate" else readout or self.state

    def _update(self, wanted: TaskState | None) -> Generator[Feed, Reply, tuple[Delta, Tensor]]:
        """Update the state by a delta that the model generates, or to `wanted`, which the state head read."""
        if wanted is None:
            delta, after = yield from self._writer.generate_delta(self.state)
        else:
            delta, after = yield from self._writer.write_delta_to(self.state, wanted)
        self.state, late = self.state.apply(delta, self._parts.policy)  # a patch may have come meanwhile
        return tuple(transition for transition in delta if transition not in late), after

    def _read_out(self, reading: Reading) -> TaskState | None:
        if reading.states is None or not self.spec.tracked:
            return None
        states, shown = reading.states, self._window.shown
        if self._parts.model.config.state_head == "frame":
            labels = [self.state.labels[step] for step in shown]
            first = next((row for row, label in enumerate(labels) if label != "completed"), len(shown))
            states, shown = states[first : first + 1], shown[first : first + 1]
        return read_state(states, shown, self.state)

    def _finish(self, embedding: np.ndarray, events: FrameEvents, fast: bool) -> None:
        frame = self.counters.frames
        self._window.add_frame(embedding, events)
        self._gate.record(frame, bool(events.delta), events.utterance is not None)
        if events != FrameEvents():
            self.history[frame] = events
        if len(self.history) > self._parts.history_events:
            del self.history[next(iter(self.history))]
            self.forgot = True
        self.counters.frames += 1
        self.counters.fast_frames += fast
        self._in_work.popleft()
        self._settle()


def _with_steps(state: TaskState, changes: Mapping[str, str]) -> TaskState:
    """Return `state` with steps set by id, such as {"S2": "completed"}.

    Raises:
        SessionError: a step or a state that does not exist.
    """
    steps = list(state.steps)
    for step_id, label in changes.items():
        index = int(step_id[1:]) - 1 if _STEP_ID.fullmatch(step_id) else -1
        if not 0 <= index < len(steps):
            raise SessionError(f"state: no step {step_id[:20]!r} in a recipe of {len(steps)}", field="state")
        if label.upper() not in StepState.__members__:
            known = ", ".join(state.label for state in StepState)
            raise SessionError(f"state.{step_id}: {label!r} must be one of {known}", field="state")
        steps[index] = StepState[label.upper()]
    return TaskState(tuple(steps))
