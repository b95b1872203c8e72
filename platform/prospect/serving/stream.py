"""One session as its gateway has it: frames in, decisions and what was said out, and what another engine needs."""

import asyncio
import secrets
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from prospect.errors import session_error
from prospect.protocol.messages import (
    DurableMessage,
    ErrorMessage,
    FrameAppend,
    FrameDecision,
    FrameDropped,
    FrameOutcome,
    ResponseCancelled,
    ResponseDelta,
    ServerMessage,
    SessionMoved,
    SessionRefreshed,
    SessionUpdate,
    StateMap,
    StateUpdated,
    state_map,
)
from prospect.serving.encoders import Encoder
from prospect.serving.engines import EngineLink
from prospect.serving.events import HostedEvent, Patched, TextRefused, messages_of, unpack_event
from prospect.serving.inbox import Inbox
from prospect.serving.journal import Journal, Reader
from prospect.serving.monitor import Monitor
from prospect.serving.outcomes import Outcomes
from prospect.serving.replay import DecidedFrame, Json, ReplayLog
from prospect.serving.session_ids import name_of
from prospect.serving.settings import SessionLimits
from prospect.serving.store import EventRow
from prospect.serving.unwritten import Unwritten
from prospect.serving.wire import LostConnectionError
from prospect.streaming.features import checked_features, foreign_encoder
from prospect.streaming.types import Decision, Refreshed, TextPiece
from prospect.streaming.waiting import FRAMES_AHEAD


class Stream:
    """Takes what the client sends to the engine, and what the engine says to the client.

    Attributes:
        name: the id by which its client knows the session.
        epoch: rises with every owner of the session.
        link: the engine that has the session, or is asked to take it; None between two.
        model: the last engine that had it; what is served is the same in all of them.
        journal: what the session has said.
        reader: the way of the last connection through the journal; None: the session never had one.
        token: of the last connection; the one before is good as well until this one has spoken.
        state: the tracked state.
        touched: when the client last sent something.
        inbox: what the client sent and is not decided.
        lock: keeps the client's messages in order while a picture is being encoded.
        decided: seq of the last decided frame.
        decided_slot: interval that it filled.
        number: of the last event taken from the engine.
        settled_number: of its last event that is behind a decided frame or a refresh.
        pieces: of the utterance that is being generated, by number.
        outcomes: what requests wait for.
        replay: what another engine needs.
        unwritten: for the store.
        ended: why the session is over here; empty while it is not.
        closed: whether it is over everywhere.
        given_up: whether it goes on in another gateway.
    """

    model: EngineLink

    def __init__(
        self,
        session_id: str,
        update: SessionUpdate,
        epoch: int,
        journal: Journal,
        limits: SessionLimits,
        changed: Callable[["Stream", bool], None],
        monitor: Monitor,
    ) -> None:
        self.name = name_of(session_id)
        self.session_id, self.update, self.epoch, self.journal = session_id, update, epoch, journal
        self._limits, self._changed, self._monitor = limits, changed, monitor
        self.link: EngineLink | None = None
        self._seated = asyncio.Event()
        self.reader: Reader | None = None
        self.token = secrets.token_hex(8)
        self._earlier_token: str | None = None
        self.state: StateMap = {f"S{number}": "not_started" for number in range(1, len(update.steps) + 1)}
        self.touched = time.monotonic()
        self.inbox = Inbox()
        self.lock = asyncio.Lock()
        self.number, self.settled_number, self.decided = 0, 0, -1
        self.decided_slot: int | None = None
        self.unwritten = Unwritten()
        self.ended = ""
        self.closed = self.given_up = False
        self.replay, self.outcomes = ReplayLog(), Outcomes()
        self.pieces: dict[int, TextPiece] = {}
        self._room = asyncio.Event()
        self._early: list[tuple[int, list[Any], Json | None, Json | None]] | None = None
        """News of an engine that is being asked for the session."""

    @property
    def handle(self) -> str:
        return f"{self.name}:{self.token}"

    @property
    def next_seq(self) -> int:
        return self.inbox.order.next_seq

    @property
    def tokens(self) -> tuple[str, ...]:
        """Those with which the session can be resumed."""
        return (self.token,) if self._earlier_token is None else (self.token, self._earlier_token)

    def recall_tokens(self, tokens: Sequence[str]) -> None:
        """Take back what `tokens` was."""
        self.token, *earlier = tokens
        self._earlier_token = next(iter(earlier), None)

    def knows(self, token: str) -> bool:
        """Whether a handle with this token may continue the session."""
        return any(secrets.compare_digest(each.encode(), token.encode()) for each in self.tokens)

    def take_over(self, resumed: SessionUpdate, token: str) -> None:
        """Let another connection read, which came with `token`; whoever read before is done."""
        self.reader = self.journal.read(resumed)
        self.token, self._earlier_token = secrets.token_hex(8), token
        self._changed(self, True)

    def spoke(self) -> None:
        """Note that the last connection has sent a message: its client has its handle, and needs no earlier one."""
        self._earlier_token = None

    # Input -------------------------------------------------------------------------------------------------

    async def push(self, frame: FrameAppend, encoder: Encoder) -> None:
        """Take a frame; where too many wait, the oldest is dropped."""
        async with self.lock:
            seq = self.inbox.order.first_seq([frame])
            try:
                await self._take([frame], seq, encoder, droppable=True)
            except Exception:  # the stream goes on behind the frame
                self.inbox.order.refuse(seq)
                raise
            self._shed()

    def drop(self, frame: FrameAppend) -> None:
        """Drop a frame that was not looked at; the stream goes on with the next seq."""
        seq = self.inbox.order.first_seq([frame])
        self.inbox.order.skip(seq)
        self.say(FrameDropped(seq=seq, reason="frame: more come than can be read"))

    async def decide(self, frames: Sequence[FrameAppend], encoder: Encoder) -> list[FrameOutcome]:
        """Take frames and wait for what is decided at each; all pictures are read before the first is taken."""
        async with self.lock:
            await self._until_there_is_room()
            first = self.inbox.order.first_seq(frames)
            outcomes = [self.outcomes.of(first + index) for index in range(len(frames))]
            try:
                await self._take(frames, first, encoder, droppable=False)
            except BaseException:
                for seq in range(first, first + len(frames)):
                    self.outcomes.forget(seq)
                raise
        return await asyncio.gather(*outcomes)

    async def text(self, text: str, text_id: str = "") -> None:
        """Add a text of the user to the next frame; one with an id is taken once."""
        async with self.lock:
            waiting = self.inbox.waiting_texts
            if text_id and text_id in [known for known, _ in waiting]:
                return  # it was sent again on a new connection
            await self.call("check_texts", [*(each for _, each in waiting), text])
            self.inbox.add_text((text_id, text))
            self._changed(self, True)

    async def patch(self, changes: StateMap) -> StateMap:
        async with self.lock:
            await self.call("patch", changes)  # its event, which said the state, came before the answer
        return self.state

    async def call(self, operation: str, *arguments: Any) -> Any:
        """Ask the engine that has the session, and the next one if that one dies; raises the engine's refusal."""
        while True:
            link = await self.seat_taken()
            try:
                return await link.call(operation, self.session_id, self.epoch, *arguments)
            except LostConnectionError:
                if self.link is link:
                    await asyncio.sleep(0.05)  # the move has not begun yet

    async def seat_taken(self) -> EngineLink:
        """The engine that has the session, waiting until a move is over; raises `closed` where it failed."""
        while self.link is None or not self.is_seated:
            if self.ended:
                raise session_error("closed", self.ended)
            await self._seated.wait()
        return self.link

    async def _take(self, frames: Sequence[FrameAppend], first: int, encoder: Encoder, droppable: bool) -> None:
        slots = self.inbox.order.slots(frames)
        if len(frames) == 1:  # without a task of its own
            embeddings = [await self._embedding(frames[0], encoder)]
        else:
            embeddings = await asyncio.gather(*(self._embedding(frame, encoder) for frame in frames))
        for seq, (frame, slot, embedding) in enumerate(zip(frames, slots, embeddings, strict=True), first):
            self.inbox.take(seq, frame, slot, embedding, droppable)
            self._monitor.took(frame.image is not None)
        self.feed()

    async def _embedding(self, frame: FrameAppend, encoder: Encoder) -> np.ndarray:
        if frame.embedding is None:
            assert frame.image is not None
            return await encoder.encode(frame.image)
        if frame.embedding.fingerprint not in self.model.accepted:
            raise foreign_encoder(frame.embedding.fingerprint, self.model.card.fingerprint)
        return checked_features(frame.embedding.array(), (self.model.card.tokens_per_frame, self.model.card.dim))

    async def _until_there_is_room(self) -> None:
        while len(self.inbox.pending) >= self._limits.max_waiting_frames:
            self._room.clear()
            await self._room.wait()

    def _shed(self) -> None:
        """Drop the oldest frames that are not in the engine: too many wait, or they wait for too long."""
        most, delay = self._limits.max_waiting_frames, self._limits.max_delay_s
        since = time.monotonic() - delay if self.is_seated else None
        while dropped := self.inbox.drop(most, since):
            reason = f"frame: more than {most} frames wait, or this one for more than {delay:g} seconds"
            self.say(FrameDropped(seq=dropped.seq, reason=reason))
            self.outcomes.fail(dropped.seq, session_error("overloaded", reason, "seq"))

    # The engine --------------------------------------------------------------------------------------------

    @property
    def _most_ahead(self) -> int:
        return min(FRAMES_AHEAD, self.model.max_waiting)

    def await_adoption(self, link: EngineLink) -> None:
        """Keep what an engine says until `take_early_news`."""
        self._early = []
        self.enter(link)

    def leave_engine(self) -> None:
        """Begin to move: frames wait until `take_seat`."""
        self.link = self._early = None
        self._seated.clear()
        for lost in self.inbox.leave_engine():
            self.say(FrameDropped(seq=lost.seq, reason="frame: the engine died with it; send it anew"))

    def enter(self, link: EngineLink) -> None:
        """Expect news of an engine, which is asked to take the session."""
        self.link = self.model = link

    def take_seat(self) -> None:
        """Go on in the engine that was entered; what waited during the move has not waited for it."""
        self.inbox.restart_clocks()
        self._seated.set()
        self.feed()

    @property
    def is_seated(self) -> bool:
        """Whether an engine has the session."""
        return self._seated.is_set()

    def log(self) -> tuple[Json, list[int], int]:
        """The arguments with which the engine restores the session: its log, the seqs that wait, its number."""
        waiting = self.inbox.send_ahead(self._most_ahead)
        return self.replay.log(self.session_id, waiting, ()), [frame.seq for frame in waiting], self.settled_number

    def feed(self) -> None:
        """Send the engine what it may have ahead."""
        if self.link is None or not self.is_seated:
            return
        if ready := self.inbox.send_ahead(self._most_ahead):
            self.link.push(self.session_id, self.epoch, ready)

    def take_news(self, first: int, events: list[Any], base: Json | None, progress: Json | None) -> None:
        """Take what the engine says of the session: events from number `first` on, each once."""
        if self._early is not None:
            return self._early.append((first, events, base, progress))
        for number, packed in enumerate(events, first):
            event = unpack_event(packed)
            if number <= self.number and self._is_repeated(number, event):
                continue
            self.number = number
            self.say_event(number, event)
            if not isinstance(event, TextPiece):
                self.settle(number)
        if base is not None:
            self.take_base(base)
        elif progress is not None:
            self.replay.progress = progress
        self.feed()
        self._shed()
        if len(self.inbox.pending) < self._limits.max_waiting_frames:
            self._room.set()

    def _is_repeated(self, number: int, event: HostedEvent) -> bool:
        """Whether an event was said before the session moved; if another was, take its utterance back."""
        if event == self.pieces.get(number):
            return True
        if self.pieces:
            piece = next(iter(self.pieces.values()))
            self.say(ResponseCancelled(seq=self.inbox.pending[0].sent.seq, frame=piece.frame))
            self.pieces.clear()
        return False

    def settle(self, number: int) -> None:
        """Note that the engine's event of this number is behind a decided frame or a refresh."""
        self.settled_number = number
        self.pieces.clear()

    def take_base(self, base: Json) -> None:
        """Keep a log that holds everything so far; frames before it are written no more, however long that waits."""
        self.replay.rebase(base, self.journal.max_decisions)
        since = base["counters"]["frames"] - self.journal.max_decisions
        frames = [each for each in self.unwritten.frames if each.frame >= since]
        self.unwritten = Unwritten(self.unwritten.events, frames, based=True)

    def take_early_news(self) -> None:
        """Take what the engine said while it was being asked for the session."""
        early, self._early = self._early or [], None
        for news in early:
            self.take_news(*news)

    def say_event(self, number: int, event: HostedEvent) -> None:
        """Tell the client what the engine says."""
        match event:
            case TextPiece():
                self.pieces[number] = event
                self.say(ResponseDelta(seq=self.inbox.pending[0].sent.seq, frame=event.frame, text=event.text), number)
            case Refreshed():
                self.say(SessionRefreshed(**vars(event)), number)
            case Patched():
                self.state = state_map(event.state)
                self.say(StateUpdated(state=self.state), number)
            case TextRefused():
                self.say(ErrorMessage(code="invalid_message", message=event.message, field="text"), number)
            case Decision():
                self._decided(number, event)

    def _decided(self, number: int, decision: Decision) -> None:
        pending = self.inbox.pending.popleft()
        sent = pending.sent
        decided = DecidedFrame.of(sent, decision, number, told := FrameDecision.of(sent.seq, decision))
        self.replay.decided(decided)
        self.unwritten.frames.append(decided)
        self.decided, self.decided_slot = sent.seq, pending.slot
        self._monitor.waited(time.monotonic() - pending.arrived)
        self.say_decision(told, decision, number, decided.acts)
        self.outcomes.decide(FrameOutcome.of(sent.seq, decision))

    # Output ------------------------------------------------------------------------------------------------

    def say(self, message: ServerMessage, number: int | None = None, acts: bool = False) -> None:
        """Write a message to the journal.

        Args:
            message: what to say.
            number: of the engine's event which it comes from.
            acts: whether the store has to have it before its client.
        """
        said = self.journal.add(message, acts)
        self._monitor.said(self.session_id, self.epoch, said)
        if isinstance(said, DurableMessage):
            assert said.event is not None
            self.unwritten.events.append(EventRow(said.event, number, said.model_dump_json(exclude_none=True)))
        self._changed(self, acts or isinstance(said, DurableMessage))

    def say_decision(self, told: FrameDecision, decision: Decision, number: int, acts: bool) -> None:
        """Say what was decided; one that `acts`, or has a text of the user, is written first."""
        self.state = state_map(decision.state)
        self._monitor.decided(self.session_id, self.epoch, decision)
        for message in (told, *messages_of(told.seq, decision)):
            self.say(message, number, acts)

    def moved(self, seconds: float) -> None:
        """Tell the client that another engine goes on."""
        lost = self.replay.num_lost
        self.say(SessionMoved(decided_to=self.decided, seconds=round(seconds, 3), lost_frames=lost))

    def finish(self, last: ServerMessage | None, reason: str) -> None:
        """Say that the session is over to whoever listens or waits; None: it goes on elsewhere."""
        self.ended = reason
        self._seated.set()
        self.outcomes.fail_all(session_error("closed", reason))
        self.given_up = last is None
        if last is None:
            return self.journal.abandon()
        self.say(last)
        self.journal.finish()
