"""What one side of a stream has sent and heard: the frames to send again, and from where to resume."""

import time
from uuid import uuid4

from pydantic import BaseModel
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from prospect.client.requests import Frame, ServerError, frame_message, stream_lost
from prospect.protocol.messages import (
    TAKEN_OVER,
    DurableMessage,
    ErrorMessage,
    EventAck,
    FrameAppend,
    FrameDecision,
    FrameDropped,
    ServerMessage,
    SessionClosed,
    SessionCreated,
    SessionMoved,
    SessionUpdate,
    StatePatch,
    StateUpdated,
    TextAppend,
)

ACKNOWLEDGED_EVERY = 100
"""Durable messages after which the server is told that it need not keep them."""
UNREACHABLE = (OSError, TimeoutError, ConnectionClosed, InvalidHandshake)
"""What a connection fails with that may be made a moment later."""
_ELSEWHERE = {"unknown_session", "fenced", "unavailable"}
"""What a gateway answers that no longer has the session, such as one that is about to stop: nothing about the frame."""
_PASSING = {"busy", "unavailable", "fenced", "internal", "rate_limited"}
"""Refusals of a server that may take the session a moment later."""


class Ledger:
    """The client's side of a session, whatever connections it has.

    Args:
        update: what opens or continues the session.
        reconnect: whether connections are made again.
        fingerprint: of the encoder that embeddings come from; None: the model's own.

    Attributes:
        created: the server's answer to the last connection.
        over: whether the stream may end: its session is closed, or this side has left.
        closing: whether the session was asked to close.
        ends_with_client: whether the session, kept for the sake of its connections alone, ends when this side leaves.
    """

    created: SessionCreated

    def __init__(self, update: SessionUpdate, reconnect: bool, fingerprint: str | None) -> None:
        self.reconnect, self.over, self.closing = reconnect, False, False
        self.ends_with_client = reconnect and not update.keep and update.resume is None
        self._update, self._fingerprint = update, fingerprint
        self._next_seq: int | None = None
        self._frames: dict[int, FrameAppend] = {}
        """By seq, sent and neither decided nor dropped."""
        self._texts: list[tuple[int, TextAppend]] = []
        """With the seq of the frame that each joins, which is not decided."""
        self._patches: list[StatePatch] = []
        """That the server has not confirmed."""
        self._last_event, self._decided = update.last_event, update.decided
        """None until something of the kind has been heard: the server then sends what nobody has."""
        self._acknowledged = update.last_event or 0

    def opening(self) -> SessionUpdate:
        """The first message of the first connection."""
        return self._update.model_copy(update={"keep": True}) if self.ends_with_client else self._update

    def resuming(self) -> SessionUpdate:
        """The first message of a later connection."""
        return SessionUpdate(resume=self.created.resume, last_event=self._last_event, decided=self._decided)

    def next_frame(self, frame: Frame, pts: float | None) -> FrameAppend:
        """The next frame as a message."""
        seq = self.created.next_seq if self._next_seq is None else self._next_seq
        message = frame_message(frame, self._fingerprint or self.created.fingerprint, seq, pts)
        self._next_seq = seq + 1
        return message

    def text(self, text: str) -> TextAppend:
        """A text of the user as a message."""
        return TextAppend(text=text, id=uuid4().hex)

    def keep(self, message: BaseModel, seq: int | None = None) -> bool:
        """Keep what may have to be sent again until the server has it for good; returns whether it is of that kind.

        Args:
            message: to the server.
            seq: of the frame that a text joins; None: the next frame.
        """
        match message:
            case FrameAppend():
                assert message.seq is not None
                self._frames[message.seq] = message
            case TextAppend():
                following = self.created.next_seq if self._next_seq is None else self._next_seq
                self._texts.append((following if seq is None else seq, message))
            case StatePatch():
                self._patches.append(message)
            case _:
                return False
        return True

    def to_send_again(self) -> list[BaseModel]:
        """What the server may not have: patches, and the frames from `next_seq` on with the texts before them."""
        first = self.created.next_seq
        again: list[tuple[int, int, BaseModel]] = [(seq, 1, frame) for seq, frame in list(self._frames.items())]
        again += [(seq, 0, text) for seq, text in self._texts]
        order = sorted((each for each in again if each[0] >= first), key=lambda each: each[:2])
        return [*self._patches, *(message for _, _, message in order)]

    def note(self, message: ServerMessage) -> bool:
        """Note what has arrived; returns whether it is new."""
        event = message.event if isinstance(message, DurableMessage) else None
        if event is not None:
            if event <= (self._last_event or 0):
                return False
            self._last_event = event
        match message:
            case FrameDecision():
                if self._decided is not None and message.seq <= self._decided:
                    return False
                self._decided = message.seq
                self._forget_before(message.seq + 1)
            case StateUpdated(seq=None):
                self._patches = self._patches[1:]
            case ErrorMessage(field=str() as named) if named.partition(".")[0] == "state":
                self._patches = self._patches[1:]
            case ErrorMessage(code=code) if code in _ELSEWHERE:
                pass
            case FrameDropped() | ErrorMessage(seq=int()):
                self._frames.pop(message.seq or 0, None)
            case SessionMoved():
                self._decided = max(-1 if self._decided is None else self._decided, message.decided_to)
                self._forget_before(message.decided_to + 1)
            case SessionClosed():
                self.over = True
        return True

    def _forget_before(self, seq: int) -> None:
        """Forget frames that are decided, and their texts; another thread may be adding some."""
        for each in [each for each in list(self._frames) if each < seq]:
            self._frames.pop(each, None)
        while self._texts and self._texts[0][0] < seq:
            self._texts.pop(0)

    def acknowledgement(self) -> EventAck | None:
        """What tells the server which events it need not keep, where that is due."""
        if self.over or self._last_event is None or self._last_event < self._acknowledged + ACKNOWLEDGED_EVERY:
            return None
        self._acknowledged = self._last_event
        return EventAck(event=self._last_event)

    def check_resumable(self, closed: ConnectionClosed) -> None:
        """Raise ServerError where a connection that broke is not to be made again."""
        if not self.reconnect or (closed.rcvd is not None and closed.rcvd.code == TAKEN_OVER):
            raise stream_lost(closed, self.created.resume)

    def ends_with(self, refused: ServerError) -> bool:
        """Whether a refusal to resume means that the session was closed, as it was asked to be, and nothing is lost."""
        self.over = self.over or (self.closing and refused.code == "unknown_session" and not self._frames)
        return self.over


class Patience:
    """How long, and how often, a connection is tried.

    Args:
        seconds: for how long.
    """

    def __init__(self, seconds: float) -> None:
        self._deadline, self._pause = time.monotonic() + seconds, 0.05

    def allows(self, failure: Exception) -> bool:
        """Whether to try again after this failure."""
        passing = failure.code in _PASSING if isinstance(failure, ServerError) else True
        return passing and time.monotonic() < self._deadline

    def pause(self) -> float:
        """Seconds to wait before the next try."""
        pause, self._pause = self._pause, min(2 * self._pause, 2.0)
        return pause
