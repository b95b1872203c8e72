"""A session as its clients see it: which frame comes next, who waits for it, what was not read yet."""

import asyncio
import logging
import secrets
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from prospect.dialogue.state import format_delta
from prospect.dialogue.timeline import FPS, nearest_frame
from prospect.errors import session_error
from prospect.protocol.messages import (
    ErrorMessage,
    FrameAppend,
    FrameDecision,
    FrameOutcome,
    ResponseDelta,
    ResponseDone,
    ServerMessage,
    SessionRefreshed,
    SessionUpdate,
    StateUpdated,
    state_map,
)
from prospect.streaming.types import Decision, Event, Refreshed, TextPiece

log = logging.getLogger(__name__)

Outbox = asyncio.Queue[ServerMessage | None]
"""What a client has not read yet; None ends the stream."""


def new_token() -> str:
    return secrets.token_hex(8)


@dataclass
class Stream:
    """Belongs to the event loop; only `pending` is extended by the engine's thread."""

    session_id: str
    update: SessionUpdate
    max_unread: int
    outbox: Outbox | None = None
    """None: nobody listens, so nothing is kept."""
    token: str = field(default_factory=new_token)
    """Of the stream that the session is bound to; a handle is good for one resumption."""
    touched: float = field(default_factory=time.monotonic)
    next_seq: int = 0
    pending: deque[int] = field(default_factory=deque)
    """seq of every frame that is taken and not decided; the engine decides them in order."""
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Keeps the order of messages while a picture is being encoded."""
    _last_seq: int = 0
    _first_pts: float = 0.0
    _last_slot: int | None = None
    _cut_off: bool = False
    """Nothing is kept any more, until somebody takes over."""
    _awaited: dict[int, asyncio.Future[FrameOutcome]] = field(default_factory=dict)

    @property
    def handle(self) -> str:
        return f"{self.session_id}:{self.token}"

    # Input -------------------------------------------------------------------------------------------------

    def check_seq(self, seq: int) -> None:
        """Each frame is taken once and in order.

        Raises:
            SessionError: `duplicate_frame` or `sequence_gap`.
        """
        if seq < self.next_seq:
            raise session_error(
                "duplicate_frame", f"seq: {seq} was taken before, the next one is {self.next_seq}", "seq"
            )
        if seq > max(self.next_seq, self._last_seq):
            raise session_error(
                "sequence_gap", f"seq: {seq} came and {self.next_seq} was expected; send that first", "seq"
            )

    def slots(self, frames: Sequence[FrameAppend]) -> list[int]:
        """The interval of 1/fps seconds that each frame fills, counted from the first frame.

        Raises:
            SessionError: `same_frame`: two pictures of one interval, or time runs backwards.
        """
        slots: list[int] = []
        first_pts, last = self._first_pts, self._last_slot
        for frame in frames:
            if last is None:
                first_pts, slot = frame.pts or 0.0, 0
            else:
                slot = last + 1 if frame.pts is None else nearest_frame(frame.pts - first_pts)
                if slot <= last:
                    message = f"pts: {frame.pts} s lies in an interval that has its frame; send one each {1 / FPS:g} s"
                    raise session_error("same_frame", message, "pts")
            slots.append(slot)
            last = slot
        return slots

    def took(self, seq: int, frame: FrameAppend, slot: int) -> None:
        if self._last_slot is None:
            self._first_pts = frame.pts or 0.0
        self._last_slot = slot
        self.next_seq = self._last_seq = seq + 1

    def refused(self, seq: int) -> None:
        """The frame may be sent again or left out: a client that sends ahead cannot go back."""
        self._last_seq = seq + 1

    # Output ------------------------------------------------------------------------------------------------

    def outcome(self, seq: int) -> asyncio.Future[FrameOutcome]:
        """Done when the frame is decided, or fails with `closed`."""
        if seq not in self._awaited:
            self._awaited[seq] = asyncio.get_running_loop().create_future()
        return self._awaited[seq]

    def publish(self, event: Event) -> None:
        match event:
            case TextPiece():
                self.say(ResponseDelta(seq=self.pending[0], frame=event.frame, text=event.text))
            case Refreshed():
                self.say(SessionRefreshed(**vars(event)))
            case Decision():
                self._decided(self.pending.popleft(), event)

    def _decided(self, seq: int, decision: Decision) -> None:
        outcome = FrameOutcome(
            seq=seq,
            frame=decision.frame,
            p_speak=decision.p_speak,
            p_update=decision.p_update,
            state=state_map(decision.state),
            delta=format_delta(decision.delta),
            utterance=decision.utterance,
            readout=state_map(decision.readout) if decision.readout else None,
            silence=decision.silence,
        )
        self.say(FrameDecision(**outcome.model_dump(include=set(FrameDecision.model_fields) - {"type"})))
        if decision.delta:
            self.say(StateUpdated(state=outcome.state, delta=outcome.delta, seq=seq, frame=decision.frame))
        if decision.utterance is not None:
            self.say(ResponseDone(seq=seq, frame=decision.frame, text=decision.utterance))
        waiter = self._awaited.pop(seq, None)
        if waiter is not None and not waiter.done():  # the request may have been given up
            waiter.set_result(outcome)

    def say(self, message: ServerMessage) -> None:
        """Queues a message; a client that does not read is cut off, so that it delays nobody."""
        if self.outbox is None or self._cut_off:
            return
        if self.outbox.qsize() < self.max_unread:
            self.outbox.put_nowait(message)
            return
        unread = self.outbox.qsize()
        log.warning("session %s: its client is cut off, %d messages unread", self.session_id, unread)
        while not self.outbox.empty():
            self.outbox.get_nowait()
        text = f"stream: {unread} messages were not read and are lost; read faster, then resume"
        self._say_last(ErrorMessage(code="slow_client", message=text))
        self._cut_off = True

    def take_over(self) -> None:
        """What was not read moves to a new outbox; whoever reads the old one is done."""
        old, self.outbox = self.outbox, asyncio.Queue()
        self._cut_off = False
        if old is None:
            return
        while not old.empty():
            if (message := old.get_nowait()) is not None:
                self.outbox.put_nowait(message)
        old.put_nowait(None)

    def finish(self, last: ServerMessage, reason: str) -> None:
        """The session is over: says so to whoever listens or waits."""
        for waiter in self._awaited.values():
            if not waiter.done():
                waiter.set_exception(session_error("closed", reason))
                waiter.exception()  # nobody may be waiting any more
        self._say_last(last)

    def _say_last(self, message: ServerMessage) -> None:
        if self.outbox is not None:
            self.outbox.put_nowait(message)
            self.outbox.put_nowait(None)
