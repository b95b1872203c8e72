"""One session as its gateway has it: frames in, decisions and what was said out, and what another engine needs."""

import asyncio
import secrets
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from prospect.dialogue.state import format_delta
from prospect.errors import ProspectError, session_error
from prospect.protocol.messages import (
    DurableMessage,
    ErrorMessage,
    FrameAppend,
    FrameDecision,
    FrameDropped,
    FrameOutcome,
    ResponseCancelled,
    ResponseDelta,
    ResponseDone,
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
from prospect.serving.events import HostedEvent, Patched, TextRefused, unpack_event
from prospect.serving.frame_order import FrameOrder
from prospect.serving.journal import Journal, Reader
from prospect.serving.replay import DecidedFrame, Json, ReplayLog, SentFrame, unpack
from prospect.serving.settings import Durability, SessionLimits
from prospect.serving.store import EventRow, FrameRow, SessionChange, SessionRow
from prospect.serving.wire import LostConnectionError
from prospect.streaming.features import checked_features, foreign_encoder
from prospect.streaming.types import Decision, Refreshed, TextPiece

IN_ENGINE = 16
"""Frames of a session that are sent ahead of their decisions: two chunks of a catch-up. Later ones wait here, where
they can still be dropped."""


Said = Sequence[tuple[int | None, ServerMessage]]
"""Durable messages, each with the number of the engine's event that it comes from."""


_NOWHERE: dict[str, Any] = {"decided": -1, "slot": None, "first_pts": 0.0, "number": 0, "settled": 0, "texts": {}}
"""Position of a session that was never written."""


@dataclass
class Pending:
    """A frame that is taken and not decided."""

    sent: SentFrame
    arrived: float
    droppable: bool
    """False where a request waits for it."""
    slot: int
    in_engine: bool = False


@dataclass
class Unwritten:
    """What a stream has said since it was last written to the store."""

    events: list[EventRow] = field(default_factory=list)
    frames: list[DecidedFrame] = field(default_factory=list)
    based: bool = False


class Stream:
    """Takes what the client sends to the engine, and what the engine says to the client.

    Attributes:
        epoch: rises with every owner of the session.
        link: the engine that has the session, or is asked to take it; None between two.
        model: the last engine that had it; what is served is the same in all of them.
        journal: what the session has said.
        reader: the way of the last connection through the journal; None: the session never had one.
        token: of the last connection; the one before is good as well until this one has spoken.
        state: the tracked state.
        touched: when the client last sent something.
        pending: frames that are taken and not decided, in order.
        lock: keeps the client's messages in order while a picture is being encoded.
        decided: seq of the last decided frame.
        number: of the last event taken from the engine.
        unwritten: for the store.
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
    ) -> None:
        self.session_id, self.update, self.epoch, self.journal = session_id, update, epoch, journal
        self._limits, self._changed = limits, changed
        self.link: EngineLink | None = None
        self._seated = asyncio.Event()
        self.reader: Reader | None = None
        self.token = new_token()
        self._earlier_token: str | None = None
        self.state: StateMap = {f"S{number}": "not_started" for number in range(1, len(update.steps) + 1)}
        self.touched = time.monotonic()
        self.pending: deque[Pending] = deque()
        self.lock = asyncio.Lock()
        self.number, self.decided = 0, -1
        self._decided_slot: int | None = None
        self.unwritten = Unwritten()
        self.ended = ""
        """Why the session is over; empty while it is not."""
        self.order = FrameOrder()
        self.replay = ReplayLog()
        self.texts: dict[int, list[str]] = {}
        """Of the user, by seq of the frame that they join."""
        self._settled_number = 0
        """Of the engine's last event that is behind a decided frame or a refresh."""
        self._pieces: dict[int, TextPiece] = {}
        """Of the utterance that is being generated, by number."""
        self._awaited: dict[int, asyncio.Future[FrameOutcome]] = {}
        self._room = asyncio.Event()
        self._early: list[tuple[int, list[Any], Json | None, Json | None]] | None = None
        """News that came before `adopt`."""

    @property
    def handle(self) -> str:
        return f"{self.session_id}:{self.token}"

    @property
    def next_seq(self) -> int:
        return self.order.next_seq

    @property
    def tokens(self) -> tuple[str, ...]:
        """Those with which the session can be resumed."""
        return tuple(each for each in (self.token, self._earlier_token) if each is not None)

    def knows(self, token: str) -> bool:
        """Whether a handle with this token may continue the session."""
        return any(secrets.compare_digest(each.encode(), token.encode()) for each in self.tokens)

    def take_over(self, resumed: SessionUpdate, token: str) -> None:
        """Let another connection read, which came with `token`; whoever read before is done."""
        self.reader = self.journal.read(resumed)
        self.token, self._earlier_token = new_token(), token
        self._changed(self, True)

    def spoke(self) -> None:
        """Note that the last connection has sent a message: its client has its handle, and needs no earlier one."""
        self._earlier_token = None

    # Input -------------------------------------------------------------------------------------------------

    async def push(self, frame: FrameAppend, encoder: Encoder) -> None:
        """Take a frame; where too many wait, the oldest is dropped."""
        async with self.lock:
            seq = self.order.first_seq([frame])
            try:
                await self._take([frame], seq, encoder, droppable=True)
            except Exception:  # the stream goes on behind the frame
                self.order.refuse(seq)
                raise
            self._shed()

    async def decide(self, frames: Sequence[FrameAppend], encoder: Encoder) -> list[FrameOutcome]:
        """Take frames and wait for what is decided at each; all pictures are read before the first is taken."""
        async with self.lock:
            await self._until_there_is_room()
            first = self.order.first_seq(frames)
            outcomes = [self.outcome(first + index) for index in range(len(frames))]
            try:
                await self._take(frames, first, encoder, droppable=False)
            except BaseException:
                for seq in range(first, first + len(frames)):
                    self._awaited.pop(seq, None)
                raise
        return await asyncio.gather(*outcomes)

    async def text(self, text: str) -> None:
        async with self.lock:
            waiting = [each for texts in self.texts.values() for each in texts]
            await self.call("check_texts", [*waiting, text])
            self.texts.setdefault(self.next_seq, []).append(text)
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
        slots = self.order.slots(frames)
        embeddings = await asyncio.gather(*(self._embedding(frame, encoder) for frame in frames))
        for seq, (frame, slot, embedding) in enumerate(zip(frames, slots, embeddings, strict=True), first):
            sent = SentFrame(seq, embedding, tuple(self._texts_before(seq)))
            self.pending.append(Pending(sent, time.monotonic(), droppable, slot))
            self.order.take(seq, frame, slot)
        self.feed()

    async def _embedding(self, frame: FrameAppend, encoder: Encoder) -> np.ndarray:
        if frame.embedding is None:
            assert frame.image is not None
            return await encoder.encode(frame.image)
        if frame.embedding.fingerprint not in self.model.accepted:
            raise foreign_encoder(frame.embedding.fingerprint, self.model.card.fingerprint)
        card = self.model.card
        return checked_features(frame.embedding.array(), (card.tokens_per_frame, card.dim))

    def _texts_before(self, seq: int) -> list[str]:
        due = [each for each in self.texts if each <= seq]
        return [text for each in sorted(due) for text in self.texts.pop(each)]

    async def _until_there_is_room(self) -> None:
        while len(self.pending) >= self._limits.max_waiting_frames:
            self._room.clear()
            await self._room.wait()

    def _shed(self) -> None:
        """Drop the oldest frames that are not in the engine: too many wait, or they wait for too long."""
        oldest = time.monotonic() - self._limits.max_delay_s
        while frame := next((each for each in self.pending if each.droppable and not each.in_engine), None):
            many = len(self.pending) > self._limits.max_waiting_frames
            if not many and (not self.is_seated or frame.arrived > oldest):
                return
            self._drop(frame, "too many frames wait" if many else f"it waited for {self._limits.max_delay_s:g} seconds")

    def _drop(self, dropped: Pending, why: str) -> None:
        at = self.pending.index(dropped)
        self.pending.remove(dropped)
        if at < len(self.pending):
            behind = self.pending[at]
            behind.sent = replace(behind.sent, texts=dropped.sent.texts + behind.sent.texts)
        elif dropped.sent.texts:
            self.texts.setdefault(self.next_seq, [])[:0] = dropped.sent.texts
        seq, reason = dropped.sent.seq, f"frame: {why}; the server is too busy"
        self.say(FrameDropped(seq=seq, reason=reason))
        self._fail_waiter(seq, session_error("overloaded", reason, "seq"))

    # The engine --------------------------------------------------------------------------------------------

    @property
    def _most_ahead(self) -> int:
        return min(IN_ENGINE, self.model.max_waiting)

    def leave_engine(self) -> None:
        """Begin to move: frames wait until `take_seat`."""
        self.link = None
        self._seated.clear()
        for frame in self.pending:
            frame.in_engine = False

    def enter(self, link: EngineLink) -> None:
        """Expect news of an engine, which is asked to take the session."""
        self.link = self.model = link

    def take_seat(self) -> None:
        """Go on in the engine that was entered; what waited during the move has not waited for it."""
        for frame in self.pending:
            frame.arrived = time.monotonic()
        self._seated.set()
        self.feed()

    @property
    def is_seated(self) -> bool:
        """Whether an engine has the session."""
        return self._seated.is_set()

    def log(self) -> tuple[Json, list[int], int]:
        """The arguments with which the engine restores the session: its log, the seqs that wait, its number."""
        waiting = list(self.pending)[: self._most_ahead]
        for frame in waiting:
            frame.in_engine = True
        log = self.replay.log(self.session_id, [each.sent for each in waiting], ())
        return log, [each.sent.seq for each in waiting], self._settled_number

    def feed(self) -> None:
        """Send the engine what it may have ahead."""
        if self.link is None or not self.is_seated:
            return
        ahead = sum(frame.in_engine for frame in self.pending)
        ready = [frame for frame in self.pending if not frame.in_engine][: max(self._most_ahead - ahead, 0)]
        if ready:
            for frame in ready:
                frame.in_engine = True
            self.link.push(self.session_id, self.epoch, [_wired(frame.sent) for frame in ready])

    def take_news(self, first: int, events: list[Any], base: Json | None, progress: Json | None) -> None:
        """Take what the engine says of the session: events from number `first` on, each once."""
        if self._early is not None:
            self._early.append((first, events, base, progress))
            return
        for number, packed in enumerate(events, first):
            event = unpack_event(packed)
            if number <= self.number and self._is_repeated(number, event):
                continue
            self.number = number
            self._publish(number, event)
            if not isinstance(event, TextPiece):
                self._settled_number = number
                self._pieces.clear()
        if base is not None:
            self.replay.rebase(base)
            self.unwritten.based = True
        elif progress is not None:
            self.replay.progress = progress
        self.feed()
        self._shed()
        if len(self.pending) < self._limits.max_waiting_frames:
            self._room.set()

    def _is_repeated(self, number: int, event: HostedEvent) -> bool:
        """Whether an event was said before the session moved; if another was, take its utterance back."""
        if event == self._pieces.get(number):
            return True
        if self._pieces:
            piece = next(iter(self._pieces.values()))
            self.say(ResponseCancelled(seq=self.pending[0].sent.seq, frame=piece.frame))
            self._pieces.clear()
        return False

    def _publish(self, number: int, event: HostedEvent) -> None:
        match event:
            case TextPiece():
                self._pieces[number] = event
                self.say(ResponseDelta(seq=self.pending[0].sent.seq, frame=event.frame, text=event.text), number)
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
        pending = self.pending.popleft()
        sent = pending.sent
        decided = DecidedFrame.of(sent, decision)
        self.replay.decided(decided)
        self.unwritten.frames.append(decided)
        self.decided, self._decided_slot = sent.seq, pending.slot
        self.say_decision(sent.seq, decision, number, decided.acts)
        waiter = self._awaited.pop(sent.seq, None)
        if waiter is not None and not waiter.done():  # the request may have been given up
            waiter.set_result(FrameOutcome.of(sent.seq, decision))

    # The store ---------------------------------------------------------------------------------------------

    def change(self, durability: Durability) -> SessionChange:
        """Take what is to be written since the last time."""
        unwritten, self.unwritten = self.unwritten, Unwritten()
        texts = {str(frame.sent.seq): frame.sent.texts for frame in self.pending if frame.sent.texts}
        columns: dict[str, Any] = {
            "position": {
                "decided": self.decided,
                "slot": self._decided_slot,
                "first_pts": self.order.first_pts,
                "number": self.number,
                "settled": self._settled_number,
                "texts": texts | {str(seq): each for seq, each in self.texts.items()},
            },
            "engine": self.link.address if self.link else "",
            "tokens": self.tokens,
            "state": self.state,
            "mark": self.replay.progress,
            "last_event": self.journal.last_event,
            "touched": time.time(),
            "status": "closed" if self.ended else "open",
        }
        base = self.replay.base
        if unwritten.based:
            columns["base"] = base
        first = base["counters"]["frames"] if base else 0
        kept = [frame for frame in unwritten.frames if frame.frame >= first and (durability == "frames" or frame.acts)]
        return SessionChange(
            self.session_id,
            self.epoch,
            columns,
            unwritten.events,
            [_row(frame, durability) for frame in kept],
            first if unwritten.based else None,
        )

    # Another gateway's session -----------------------------------------------------------------------------

    def recall(self, row: SessionRow) -> None:
        """Begin where the store says that the session stands."""
        position = _NOWHERE | row.position
        self.token, *earlier = row.tokens
        self._earlier_token = next(iter(earlier), None)
        self.state = STATE_MAP.validate_python(row.state)
        self.decided, self._decided_slot = position["decided"], position["slot"]
        self.number, self._settled_number = position["number"], position["settled"]
        self.order.restore(self.decided + 1, position["first_pts"], position["slot"])
        self.texts = {int(seq): list(texts) for seq, texts in position["texts"].items()}

    def await_adoption(self, link: EngineLink) -> None:
        """Keep what an engine says until `adopt`."""
        self._early = []
        self.enter(link)

    def adopt(self, adopted: Json, said: Said) -> None:
        """Continue what the engine has: `adopted` is its answer, `said` what the store has of the messages."""
        written, log = self.number, adopted["log"]
        recent = [(number, seq, unpack_event(packed)) for number, seq, packed in adopted["recent"]]
        self.journal.restore(*_merged(said, recent, written, self.decided))
        for index, (number, seq, event) in enumerate(recent):
            if not isinstance(event, TextPiece):
                self._settled_number = number
                self._pieces.clear()
            if isinstance(event, Decision):
                assert seq is not None
                self.decided = max(self.decided, seq)
                if number > written:
                    self.say_decision(seq, event, number, acts=True)
            elif isinstance(event, TextPiece):
                self._pieces[number] = event
                decided = [at for _, at, _ in recent[index:] if at is not None] or adopted["seqs"]
                if number > written:
                    self.say(ResponseDelta(seq=decided[0], frame=event.frame, text=event.text), number)
            elif number > written:
                self._publish(number, event)
        self._adopt_waiting(adopted["seqs"], log)
        self.number = adopted["number"]
        next_seq = adopted["seqs"][-1] + 1 if adopted["seqs"] else self.decided + 1
        self.order.restore(next_seq, self.order.first_pts, self._decided_slot)
        early, self._early = self._early or [], None
        for news in early:
            self.take_news(*news)

    def _adopt_waiting(self, seqs: list[int], log: Json | None) -> None:
        taken = seqs[-1] if seqs else self.decided
        self.texts = {seq: texts for seq, texts in self.texts.items() if seq > taken}
        frames: list[SentFrame] = [SentFrame(seq, None) for seq in seqs]
        if log is not None:
            self.replay = ReplayLog({**log, "waiting": None, "texts": []})
            self.unwritten.based = True
            self.state = dict(zip(self.state, log["state"], strict=True))
            waiting = log["waiting"]
            features = unpack(waiting["frames"])
            frames = [
                SentFrame(seq, each, tuple(texts))
                for seq, each, texts in zip(seqs, features, waiting["texts"], strict=True)
            ]
        now, slot = time.monotonic(), self._decided_slot or 0
        self.pending.extend(Pending(frame, now, True, slot, in_engine=True) for frame in frames)

    def recover(self, row: SessionRow, frames: Sequence[DecidedFrame], said: Said, decided: int | None) -> None:
        """Continue what the store has, the engine being gone as well.

        Args:
            row: of the session.
            frames: decided since its base, as far as they are kept.
            said: messages with the numbers of the engine's events that they come from.
            decided: seq of the last frame whose decision the client has: the store may lag behind by silent ones.
        """
        self.replay = ReplayLog(row.base, row.mark, frames)
        lag = max((self.decided if decided is None else decided) - self.decided, 0)
        self.replay.skip(lag)
        self.decided += lag
        self.texts = {seq: texts for seq, texts in self.texts.items() if seq > self.decided}
        self.order.restore(self.decided + 1, self.order.first_pts, self._decided_slot)
        self._pieces = {
            number: TextPiece(message.frame, message.text)
            for number, message in said
            if isinstance(message, ResponseDelta) and number is not None and number > self._settled_number
        }
        self.journal.restore([message for _, message in said], row.last_event, self.decided)

    # Output ------------------------------------------------------------------------------------------------

    def outcome(self, seq: int) -> asyncio.Future[FrameOutcome]:
        """Return a future: done when the frame is decided, failed with `closed` if it never is."""
        if seq not in self._awaited:
            self._awaited[seq] = asyncio.get_running_loop().create_future()
        return self._awaited[seq]

    def say(self, message: ServerMessage, number: int | None = None, acts: bool = False) -> None:
        """Write a message to the journal.

        Args:
            message: what to say.
            number: of the engine's event which it comes from.
            acts: whether the store has to have it before its client.
        """
        said = self.journal.add(message, acts)
        if isinstance(said, DurableMessage):
            assert said.event is not None
            self.unwritten.events.append(EventRow(said.event, number, said.model_dump_json(exclude_none=True)))
        self._changed(self, acts or isinstance(said, DurableMessage))

    def say_decision(self, seq: int, decision: Decision, number: int, acts: bool) -> None:
        """Say what was decided at frame `seq`; one that `acts`, or has a text of the user, is written first."""
        self.state = state_map(decision.state)
        for message in messages_of(seq, decision):
            self.say(message, number, acts)

    def moved(self, seconds: float) -> None:
        """Tell the client that another engine goes on."""
        lost = self.replay.num_lost
        self.say(SessionMoved(decided_to=self.decided, seconds=round(seconds, 3), lost_frames=lost))

    def finish(self, last: ServerMessage | None, reason: str) -> None:
        """Say that the session is over to whoever listens or waits; None: it goes on elsewhere."""
        self.ended = reason
        self._seated.set()
        for seq in list(self._awaited):
            self._fail_waiter(seq, session_error("closed", reason))
        if last is None:
            self.journal.leave()
        else:
            self.say(last)
            self.journal.finish()

    def _fail_waiter(self, seq: int, error: ProspectError) -> None:
        waiter = self._awaited.pop(seq, None)
        if waiter is not None and not waiter.done():
            waiter.set_exception(error)
            waiter.exception()  # nobody may be waiting any more


STATE_MAP = TypeAdapter(StateMap)


def new_token() -> str:
    return secrets.token_hex(8)


def messages_of(seq: int, decision: Decision) -> list[ServerMessage]:
    """What a client is told of a decision at its frame `seq`."""
    messages: list[ServerMessage] = [FrameDecision.of(seq, decision)]
    if decision.delta:
        state, delta = state_map(decision.state), format_delta(decision.delta)
        messages.append(StateUpdated(state=state, delta=delta, seq=seq, frame=decision.frame))
    if decision.utterance is not None:
        messages.append(ResponseDone(seq=seq, frame=decision.frame, text=decision.utterance))
    return messages


def _wired(frame: SentFrame) -> tuple[int, list[str], bytes, list[int]]:
    assert frame.embedding is not None
    data = np.ascontiguousarray(frame.embedding, np.float16)
    return frame.seq, list(frame.texts), data.tobytes(), list(data.shape)


def _row(frame: DecidedFrame, durability: Durability) -> FrameRow:
    data = frame.sent.embedding if durability == "frames" else None
    return FrameRow(frame.frame, frame.sent.seq, frame.events, None if data is None else data.tobytes())


def _merged(
    said: Said, recent: Sequence[tuple[int, int | None, HostedEvent]], written: int, decided: int
) -> tuple[list[ServerMessage], int, int]:
    """Put the decisions that the engine remembers among the durable messages that the store has.

    Returns:
        The messages, the number of the last durable one, and the seq of the last decision that is not among them.
    """
    known = [(number, seq, event) for number, seq, event in recent if isinstance(event, Decision) and seq is not None]
    first = known[0][1] - 1 if known else decided
    due = deque((number, FrameDecision.of(seq, event)) for number, seq, event in known if number <= written)
    merged: list[ServerMessage] = []
    for source, message in said:
        while due and source is not None and due[0][0] <= source:
            merged.append(due.popleft()[1])
        merged.append(message)
    merged.extend(message for _, message in due)
    last = max((message.event or 0 for _, message in said if isinstance(message, DurableMessage)), default=0)
    return merged, last, first
