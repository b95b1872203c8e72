"""One session as its client sees it: frames in, decisions and what was said out."""

import asyncio
import secrets
import time
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from prospect.dialogue.state import format_delta
from prospect.dialogue.timeline import FPS, nearest_frame
from prospect.errors import ProspectError, session_error
from prospect.protocol.messages import (
    FrameAppend,
    FrameDecision,
    FrameDropped,
    FrameOutcome,
    ResponseDelta,
    ResponseDone,
    ServerMessage,
    SessionRefreshed,
    SessionUpdate,
    StateMap,
    StateUpdated,
    state_map,
)
from prospect.serving.engine_thread import EngineThread
from prospect.serving.journal import Journal, Reader
from prospect.streaming.types import Decision, EngineEvent, Refreshed, TextPiece

if TYPE_CHECKING:
    from prospect.serving.live_encoder import LiveEncoder


def new_token() -> str:
    return secrets.token_hex(8)


class FrameOrder:
    """The numbers (seq) and times (pts) of a session's frames: each frame is taken once and in order.

    Attributes:
        next_seq: of the frame after the last one taken.
    """

    def __init__(self) -> None:
        self.next_seq = 0
        self._next_new = 0
        """Follows the last frame that was taken or refused."""
        self._first_pts = 0.0
        self._last_slot: int | None = None

    def first_seq(self, frames: Sequence[FrameAppend]) -> int:
        """Return the seq of the first of `frames`, which follow each other.

        Raises:
            SessionError: `duplicate_frame` or `sequence_gap`.
        """
        first = self.next_seq if frames[0].seq is None else frames[0].seq
        if first < self.next_seq:
            raise session_error(
                "duplicate_frame", f"seq: {first} was taken before, the next one is {self.next_seq}", "seq"
            )
        if first > max(self.next_seq, self._next_new):
            raise session_error(
                "sequence_gap", f"seq: {first} came and {self.next_seq} was expected; send that first", "seq"
            )
        for expected, frame in enumerate(frames[1:], first + 1):
            if frame.seq not in (None, expected):
                raise session_error("sequence_gap", f"seq: {frame.seq} follows {expected - 1} in this request", "seq")
        return first

    def slots(self, frames: Sequence[FrameAppend]) -> list[int]:
        """Return the interval of 1/fps seconds that each frame fills, counted from the session's first frame.

        Raises:
            SessionError: `same_frame`: two pictures lie in one interval, or time runs backwards.
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

    def take(self, seq: int, frame: FrameAppend, slot: int) -> None:
        if self._last_slot is None:
            self._first_pts = frame.pts or 0.0
        self._last_slot = slot
        self.next_seq = self._next_new = seq + 1

    def refuse(self, seq: int) -> None:
        """Let the frame be sent again or left out: a client that sends ahead cannot go back."""
        self._next_new = seq + 1


class Stream:
    """Takes what the client sends to the engine, and what the engine says to the client.

    Belongs to the event loop; only `pending` is extended on the engine's thread.

    Attributes:
        journal: what the session has said.
        reader: the way of the last connection through the journal; None: the session never had one.
        token: of the last connection; the one before is good as well until this one has spoken.
        last_state: of a session that is closed.
        touched: when the client last sent something.
        pending: seq of every frame that is taken and not decided; the engine decides them in order.
        lock: keeps the client's messages in order while a picture is being encoded.
    """

    def __init__(
        self,
        session_id: str,
        update: SessionUpdate,
        engine: EngineThread,
        encoder: "LiveEncoder | None",
        journal: Journal,
    ) -> None:
        self.session_id, self.update, self.journal = session_id, update, journal
        self._engine, self._encoder = engine, encoder
        self.reader: Reader | None = None
        self.last_state: StateMap = {}
        self.token = new_token()
        self._earlier_token: str | None = None
        self.touched = time.monotonic()
        self.pending: deque[int] = deque()
        self.lock = asyncio.Lock()
        self._order = FrameOrder()
        self._awaited: dict[int, asyncio.Future[FrameOutcome]] = {}

    @property
    def handle(self) -> str:
        return f"{self.session_id}:{self.token}"

    @property
    def next_seq(self) -> int:
        return self._order.next_seq

    def knows(self, token: str) -> bool:
        """Whether a handle with this token may continue the session."""
        good = [each for each in (self.token, self._earlier_token) if each is not None]
        return any(secrets.compare_digest(each.encode(), token.encode()) for each in good)

    def take_over(self, resumed: SessionUpdate, token: str) -> None:
        """Let another connection read, which came with `token`; whoever read before is done."""
        self.reader = self.journal.read(resumed)
        self.token, self._earlier_token = new_token(), token

    def spoke(self) -> None:
        """Note that the last connection has sent a message: its client has its handle, and needs no earlier one."""
        self._earlier_token = None

    # Input -------------------------------------------------------------------------------------------------

    async def push(self, frame: FrameAppend) -> None:
        """Take a frame; one that finds too many waiting is answered `frame.dropped`."""
        async with self.lock:
            seq = self._order.first_seq([frame])
            try:
                await self._take([frame], seq)
            except Exception as error:  # of ours too: the stream goes on behind the frame
                self._order.refuse(seq)
                if not isinstance(error, ProspectError) or error.code != "overloaded":
                    raise
                self.say(FrameDropped(seq=seq, reason=str(error)))

    async def decide(self, frames: Sequence[FrameAppend]) -> list[FrameOutcome]:
        """Take frames and wait for what is decided at each; all pictures are read before the first is taken."""
        async with self.lock:
            outcomes = await self._take(frames, self._order.first_seq(frames), wait=True)
        return await asyncio.gather(*outcomes)

    async def text(self, text: str) -> None:
        async with self.lock:
            await self._engine.call(self._engine.engine.push_text, self.session_id, text)

    async def patch(self, changes: StateMap) -> StateMap:
        async with self.lock:
            state = await self._engine.call(self._engine.engine.patch_state, self.session_id, changes)
        self.say(StateUpdated(state=state_map(state)))
        return state_map(state)

    async def _take(
        self, frames: Sequence[FrameAppend], first: int, wait: bool = False
    ) -> list[asyncio.Future[FrameOutcome]]:
        slots = self._order.slots(frames)
        embeddings = await asyncio.gather(*map(self._embedding, frames))
        outcomes = []
        for seq, (frame, slot, embedding) in enumerate(zip(frames, slots, embeddings, strict=True), first):
            if wait:
                outcomes.append(self.outcome(seq))
            await self._engine.call(self._push, seq, embedding, frame)
            self._order.take(seq, frame, slot)
        return outcomes

    def _push(self, seq: int, embedding: np.ndarray, frame: FrameAppend) -> None:
        """On the engine's thread, so that no step decides the frame before its seq is known."""
        fingerprint = frame.embedding.fingerprint if frame.embedding else None
        self._engine.engine.push_frame(self.session_id, embedding, fingerprint)
        self.pending.append(seq)

    async def _embedding(self, frame: FrameAppend) -> np.ndarray:
        if frame.embedding is not None:
            return frame.embedding.array()
        if self._encoder is None:
            fingerprint = self._engine.engine.loaded.fingerprint
            message = f"image: this model has no encoder here; send embeddings of fingerprint {fingerprint}"
            raise session_error("no_encoder", message, "image")
        assert frame.image is not None
        return await self._encoder.encode(frame.image)

    # Output ------------------------------------------------------------------------------------------------

    def outcome(self, seq: int) -> asyncio.Future[FrameOutcome]:
        """Return a future: done when the frame is decided, failed with `closed` if it never is."""
        if seq not in self._awaited:
            self._awaited[seq] = asyncio.get_running_loop().create_future()
        return self._awaited[seq]

    def publish(self, event: EngineEvent) -> None:
        """Tell the client what a step of the engine said about the session."""
        match event:
            case TextPiece():
                self.say(ResponseDelta(seq=self.pending[0], frame=event.frame, text=event.text))
            case Refreshed():
                self.say(SessionRefreshed(**vars(event)))
            case Decision():
                self._decided(self.pending.popleft(), event)

    def _decided(self, seq: int, decision: Decision) -> None:
        self.say(FrameDecision.of(seq, decision))
        if decision.delta:
            state, delta = state_map(decision.state), format_delta(decision.delta)
            self.say(StateUpdated(state=state, delta=delta, seq=seq, frame=decision.frame))
        if decision.utterance is not None:
            self.say(ResponseDone(seq=seq, frame=decision.frame, text=decision.utterance))
        waiter = self._awaited.pop(seq, None)
        if waiter is not None and not waiter.done():  # the request may have been given up
            waiter.set_result(FrameOutcome.of(seq, decision))

    def say(self, message: ServerMessage) -> None:
        """Write a message to the journal; a client that does not read is cut off, so that it delays nobody."""
        self.journal.add(message)

    def finish(self, last: ServerMessage, reason: str) -> None:
        """Say that the session is over to whoever listens or waits."""
        for waiter in self._awaited.values():
            if not waiter.done():
                waiter.set_exception(session_error("closed", reason))
                waiter.exception()  # nobody may be waiting any more
        self.journal.finish(last)
