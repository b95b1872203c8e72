"""One live stream, its control flow written straight down: it yields tokens to feed and receives hidden states.

The engine batches the feeds of all sessions; a session knows nothing of the others.
"""

from collections import deque
from collections.abc import Generator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from prospect.dialogue.prompt import Context, ContextSettings
from prospect.dialogue.sequence import delta_block, image_block, user_block, utterance_block
from prospect.dialogue.state import Delta, StatePolicy, TaskState, parse_delta
from prospect.dialogue.timeline import FPS, FrameEvents
from prospect.dialogue.vocabulary import Vocabulary
from prospect.errors import DataError, SessionError
from prospect.model.modeling import DSTProActLlamaForCausalLM
from prospect.streaming.context import STRATEGIES, ContextPlan, frame_reserve, session_context
from prospect.streaming.decisions import decision_backend, read_state
from prospect.streaming.feeds import Feed, Reading, Reply, Run
from prospect.streaming.journal import Segment, SessionLog
from prospect.streaming.outputs import Decision, Event, Refreshed, SessionSpec, TextPiece
from prospect.streaming.pages import BlockTable
from prospect.streaming.settings import DstDecoder


QueuedFrame = tuple[np.ndarray, tuple[str, ...]]
"""A frame's features [I, D] and what the user said before it."""


@dataclass(frozen=True)
class DecisionPolicy:
    """A session acts where a probability is above these thresholds."""

    speak: float
    update: float
    cooldown_frames: int
    dst_decoder: DstDecoder


@dataclass
class SessionParts:
    """What the engine shares with every session."""

    model: DSTProActLlamaForCausalLM
    vocabulary: Vocabulary
    context: ContextSettings
    policy: StatePolicy
    catch_up_frames: int
    """Most waiting frames of one session that are decided in one chunk."""


@dataclass
class Counters:
    """What a session has done so far."""

    frames: int = 0
    fast_frames: int = 0
    refreshes: int = 0
    illegal_transitions: int = 0
    lm_head_calls: int = 0


class Session:
    """State, cache and queue of one stream.

    Attributes:
        outbox: events that the engine has not collected yet.
        history: events of every frame at which something happened.
    """

    def __init__(self, parts: SessionParts, spec: SessionSpec, cache: BlockTable, policy: DecisionPolicy) -> None:
        self._parts = parts
        self.spec = spec
        self.decides = policy
        self.cache = cache
        self.state = spec.state or TaskState.initial(len(spec.steps))
        self.counters = Counters()
        self.history: dict[int, FrameEvents] = {}
        self.outbox: list[Event] = []
        self.frames: deque[QueuedFrame] = deque()
        self.texts: list[str] = []
        self.num_pushed = 0
        self.segment: Segment | None = None
        self._said = list(spec.utterances)
        self._tail: deque[np.ndarray] = deque(maxlen=max(1, parts.context.max_tail_frames))
        self._backend = decision_backend(parts.model)
        self._step_vectors: Tensor | None = None
        self._shown: list[int] = []
        self._stale = False
        self.patched = False
        self._last_spoken: int | None = None
        self._num_sent = 0
        self._tokens_per_frame = parts.model.config.tokens_per_frame
        self._check_room()

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
        length = len(user_block(self._parts.vocabulary, text)) + sum(
            len(user_block(self._parts.vocabulary, pending)) for pending in self.texts
        )
        room = self._room_for_text()
        if length > room:
            raise SessionError(f"text: takes {length} tokens, this session has room for {room}", field="text")
        self.texts.append(text)

    def patch_state(self, state: TaskState) -> None:
        """Somebody else knows better; the context is rebuilt before the next frame."""
        self.state = state
        self._stale = self.patched = True

    def export(self) -> SessionLog:
        """Everything but keys and values; call it between frames."""
        assert self.segment is not None
        return SessionLog(
            spec=self.spec,
            state=self.state,
            segment=self.segment,
            history=dict(self.history),
            said=list(self._said),
            texts=list(self.texts),
            tail=list(self._tail),
            frames=self.counters.frames,
            last_spoken=self._last_spoken,
            stale=self._stale,
        )

    def restore(self, log: SessionLog) -> None:
        """Continues `log`; `start` then rebuilds the cache."""
        self.state, self.segment, self.history = log.state, log.segment, dict(log.history)
        self._said, self.texts = list(log.said), list(log.texts)
        self._tail.extend(log.tail)
        self.counters.frames = self.num_pushed = log.frames
        self._last_spoken, self._stale = log.last_spoken, log.stale

    def start(self) -> Run:
        """Feeds the first context, or a restored segment's tokens."""
        if self.segment is None:
            reserve = frame_reserve(self._parts.context, self._tokens_per_frame)
            yield from self._open_segment(self._plan(), self._parts.context.max_seq_len - reserve)
        else:
            yield from self._replay(self.segment)

    def decide(self) -> Run:
        """Decides waiting frames in one chunk, up to the first at which something is done; the rest wait again."""
        yield from self._make_room(self.counters.frames, self.frames[0][1])
        frames, ids, ends = self._catch_up()
        start = self.cache.length
        rows = np.concatenate([embedding for embedding, _ in frames])
        reply = yield Feed(ids, rows, kind="frame", decide_at=tuple(ends), step_vectors=self._step_vectors)
        for index, (embedding, texts) in enumerate(frames):
            behind = start + ends[index] + 1
            acted = yield from self._decide_at(embedding, texts, reply.hidden[ends[index]], reply.readings[index], behind)
            if (acted or self._stale) and index + 1 < len(frames):
                if not acted:
                    self.cache.truncate(behind)
                self.frames.extendleft(reversed(frames[index + 1 :]))
                return

    def _catch_up(self) -> tuple[list[QueuedFrame], list[int], list[int]]:
        """Takes waiting frames with their tokens and the index of each one's last image token.

        The first has its room; a later one comes along if it needs no new context even then.
        """
        parts = self._parts
        reserve = frame_reserve(parts.context, self._tokens_per_frame)
        taken: list[QueuedFrame] = []
        ids: list[int] = []
        ends: list[int] = []
        while self.frames and len(taken) < parts.catch_up_frames:
            before = [token for text in self.frames[0][1] for token in user_block(parts.vocabulary, text)]
            if taken and self.cache.length + len(ids) + len(before) + reserve > parts.context.max_seq_len:
                break
            taken.append(self.frames.popleft())
            ids += [*before, *image_block(parts.vocabulary, self._tokens_per_frame)]
            ends.append(len(ids) - 1)
        return taken, ids, ends

    def _decide_at(
        self, embedding: np.ndarray, texts: tuple[str, ...], hidden: Tensor, reading: Reading, behind: int
    ) -> Generator[Feed, Reply, bool]:
        """Decides one frame, whose image ends before position `behind`; returns whether the cache changed there."""
        frame = self.counters.frames
        p = reading.probabilities
        p_speak, p_update = p.speak, p.update if self.spec.tracked else 0.0
        readout = self._read_out(reading)
        delta: Delta = ()
        illegal: Delta = ()
        lm_head_before = self.counters.lm_head_calls
        updates = self.spec.tracked and p_update > self.decides.update
        if updates:
            self.cache.truncate(behind)
            if self.decides.dst_decoder == "generate":
                delta, illegal, after = yield from self._write_delta()
            else:
                delta, after = yield from self._read_delta(readout, hidden)
            if delta:
                p_speak = self._backend.after_delta(p, after)
        utterance = None
        speaks = p_speak > self.decides.speak and not self._cooling_down(frame)
        if speaks:
            if not updates:
                self.cache.truncate(behind)
            utterance = yield from self._write_utterance(frame)
        fast = self.counters.lm_head_calls == lm_head_before
        self._finish(frame, embedding, FrameEvents(texts, delta, utterance), fast, illegal)
        self.outbox.append(Decision(frame, p_speak, p_update, self.state, delta, utterance, readout, fast, illegal))
        return updates or speaks

    # Context -----------------------------------------------------------------------------------------------

    def _check_room(self) -> None:
        """A context with nothing behind it must leave room for one frame."""
        if self._room_for_text() < 0:
            raise SessionError(
                "session: goal, recipe and knowledge leave no room for a frame; "
                "shorten them or raise context.max_seq_len",
                field="knowledge",
            )

    def _room_for_text(self) -> int:
        """Tokens that the user may take before one frame, whenever the context is rebuilt.

        A rebuilt context can do without the utterances; a step's label may take two tokens more by then.
        """
        longest_tail = STRATEGIES[self._parts.context.strategy](self._parts.context, [], FPS * 3600).tail_frames
        text = self._context(ContextPlan((), 0)).num_text + 2 * len(self.spec.steps)
        reserve = frame_reserve(self._parts.context, self._tokens_per_frame)
        return self._parts.context.max_seq_len - text - longest_tail * self._tokens_per_frame - reserve

    def _plan(self) -> ContextPlan:
        settings = self._parts.context
        return STRATEGIES[settings.strategy](settings, self._said, len(self._tail) if self.counters.frames else 0)

    def _context(self, plan: ContextPlan, room: int | None = None) -> Context:
        parts = self._parts
        return session_context(
            parts.vocabulary, self.spec, self.state, plan, parts.context, self._tokens_per_frame, room
        )

    def _make_room(self, frame: int, texts: tuple[str, ...]) -> Run:
        """Rebuilds the context where this frame, whatever comes of it, might not fit."""
        needed = frame_reserve(self._parts.context, self._tokens_per_frame)
        needed += sum(len(user_block(self._parts.vocabulary, text)) for text in texts)
        if not self._stale and self.cache.length + needed <= self._parts.context.max_seq_len:
            return
        before = self.cache.length
        self._stale = False  # a patch that comes while the context is fed makes it stale again
        yield from self._open_segment(self._plan(), self._parts.context.max_seq_len - needed)
        self.counters.refreshes += 1
        self.outbox.append(Refreshed(frame, before, self.cache.length))

    def _open_segment(self, plan: ContextPlan, room: int) -> Run:
        self.cache.truncate(0)
        context = self._context(plan, room)
        tail = list(self._tail)[len(self._tail) - plan.tail_frames :]
        self.segment = Segment(context, self.counters.frames, tail)
        ids = list(context.ids)
        shareable = ids.index(self._parts.vocabulary.image) if tail else len(ids)
        reply = yield Feed(ids, np.concatenate(tail) if tail else None, kind="context", num_shareable=shareable)
        self._take_step_vectors(reply.hidden)

    def _replay(self, segment: Segment) -> Run:
        """Rebuilds the cache from a segment's tokens: everything is known, nothing is decided."""
        sequence = segment.sequence(self._parts.vocabulary, self._tokens_per_frame)
        rows = [*segment.tail, *segment.frames]
        reply = yield Feed(sequence.ids, np.concatenate(rows) if rows else None, kind="context")
        self._take_step_vectors(reply.hidden)

    def _take_step_vectors(self, hidden: Tensor) -> None:
        assert self.segment is not None
        positions = self.segment.context.step_positions
        trained = (self._parts.model.config.trained_steps or {}).get("dst_state", 0) > 0  # else it reads off nothing
        self._shown = [step for step, position in enumerate(positions) if position >= 0 and trained]
        at_lines = hidden[[positions[step] for step in self._shown]]
        self._step_vectors = self._parts.model.dst_state_head.step_vectors(at_lines) if self._shown else None

    # Decisions ---------------------------------------------------------------------------------------------

    def _cooling_down(self, frame: int) -> bool:
        return self._last_spoken is not None and frame - self._last_spoken <= self.decides.cooldown_frames

    def _read_out(self, reading: Reading) -> TaskState | None:
        if reading.states is None or not self.spec.tracked:
            return None
        return read_state(reading.states, self._shown, self.state)

    def _write_delta(self) -> Generator[Feed, Reply, tuple[Delta, Delta, Tensor]]:
        """Generates a delta and applies what is legal of it; the cache keeps exactly that.

        Returns the applied and the refused transitions, and the hidden state at the delta's stop token.
        """
        start = self.cache.length
        ids, hidden = yield from self._generate(self._parts.vocabulary.dst, self._parts.context.max_delta_tokens)
        try:
            wanted = parse_delta(self._parts.vocabulary.decode(ids).strip())
        except DataError:
            wanted = ()
        wanted = self._within_limit(wanted)
        state, illegal = self.state.apply(wanted, self._parts.policy)
        delta = self._legal(wanted) if illegal else wanted
        self.state = state
        self.counters.illegal_transitions += len(illegal)
        block = delta_block(self._parts.vocabulary, delta) if delta else []
        hidden = yield from self._settle(start, [self._parts.vocabulary.dst, *ids], block, hidden)
        return delta, illegal, hidden

    def _read_delta(self, readout: TaskState | None, hidden: Tensor) -> Generator[Feed, Reply, tuple[Delta, Tensor]]:
        """Moves to the readout; the cache gets the delta's text without `lm_head` being asked for it."""
        delta = self._within_limit(self.state.delta_to(readout)) if readout is not None else ()
        if not delta:
            return (), hidden
        self.state, _ = self.state.apply(delta, self._parts.policy)
        reply = yield Feed(delta_block(self._parts.vocabulary, delta))
        return delta, reply.hidden[-1]

    def _within_limit(self, delta: Delta) -> Delta:
        """The first transitions that `max_delta_tokens` has room for; a frame's reserve counts on no more."""
        limit = self._parts.context.max_delta_tokens + 2
        while delta and len(delta_block(self._parts.vocabulary, delta)) > limit:
            delta = delta[:-1]
        return delta

    def _legal(self, wanted: Delta) -> Delta:
        """What of `wanted` applies, in the order written."""
        state, legal = self.state, []
        for transition in wanted:
            if state.is_legal(transition, self._parts.policy):
                state, _ = state.apply((transition,), self._parts.policy)
                legal.append(transition)
        return tuple(legal)

    def _write_utterance(self, frame: int) -> Generator[Feed, Reply, str | None]:
        start, vocabulary = self.cache.length, self._parts.vocabulary
        ids, hidden = yield from self._generate(vocabulary.asst, self._parts.context.max_utterance_tokens, frame)
        text = self._speakable(vocabulary.decode(ids).strip())
        if len(text) > self._num_sent:  # it ended in half a character
            self.outbox.append(TextPiece(frame, text[self._num_sent :]))
        block = utterance_block(vocabulary, text) if text else []
        yield from self._settle(start, [vocabulary.asst, *ids], block, hidden)
        return text or None

    def _speakable(self, text: str) -> str:
        """The start of `text` that `max_utterance_tokens` holds: half a character generated takes more as text."""
        limit, vocabulary = self._parts.context.max_utterance_tokens, self._parts.vocabulary
        while len(ids := vocabulary.encode(text)) > limit:
            text = vocabulary.decode(ids[:limit]).rstrip("\N{REPLACEMENT CHARACTER}").rstrip()
        return text

    def _generate(
        self, prefix: int, limit: int, frame: int | None = None
    ) -> Generator[Feed, Reply, tuple[list[int], Tensor]]:
        """Greedy tokens after `prefix` until a stop id or `limit`; pieces of text go out where `frame` is given."""
        vocabulary = self._parts.vocabulary
        ids: list[int] = []
        self._num_sent = 0
        token = prefix
        while True:
            reply = yield Feed([token], wants_logits=True)
            self.counters.lm_head_calls += 1
            assert reply.logits is not None
            logits = reply.logits.clone()
            logits[list(vocabulary.never_generated)] = -torch.inf
            if not ids:
                logits[list(vocabulary.stop_ids)] = -torch.inf
            token = int(logits.argmax())
            if token in vocabulary.stop_ids:
                return ids, reply.hidden[-1]
            ids.append(token)
            if frame is not None:
                self._send_piece(frame, ids)
            if len(ids) == limit:
                reply = yield Feed([token])
                return ids, reply.hidden[-1]

    def _send_piece(self, frame: int, ids: list[int]) -> None:
        """A token may hold half a character; a piece goes out when the text so far is whole."""
        text = self._parts.vocabulary.decode(ids).lstrip()
        if len(text) > self._num_sent and not text.endswith("\N{REPLACEMENT CHARACTER}"):
            self.outbox.append(TextPiece(frame, text[self._num_sent :]))
            self._num_sent = len(text)

    def _settle(self, start: int, fed: list[int], block: list[int], hidden: Tensor) -> Generator[Feed, Reply, Tensor]:
        """Leaves exactly `block` in the cache from `start` on; returns the last hidden state.

        What was generated may be tokenised otherwise than its text, or refused; training and a replay
        see the text's own tokens.
        """
        if not block:
            self.cache.truncate(start)
            return hidden
        missing = block[-1:]
        if fed != block[:-1]:
            self.cache.truncate(start)
            missing = block
        reply = yield Feed(missing)
        return reply.hidden[-1]

    def _finish(self, frame: int, embedding: np.ndarray, events: FrameEvents, fast: bool, illegal: Delta) -> None:
        assert self.segment is not None
        self.segment.frames.append(embedding)
        self.segment.events.append(events)
        self._tail.append(embedding)
        self._said += [("user", text) for text in events.user]
        if events.utterance is not None:
            self._said.append(("assistant", events.utterance))
            self._last_spoken = frame
        if events != FrameEvents():
            self.history[frame] = events
        self.counters.frames += 1
        self.counters.fast_frames += fast
