"""Streams a clip through a deployment, with a connection that is cut in the middle, and keeps what was heard."""

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from websockets.exceptions import ConnectionClosed

from prospect.client import LiveSession, ProspectClient, ServerError
from prospect.probe.clip import Clip
from prospect.protocol.messages import (
    DurableMessage,
    ErrorMessage,
    FrameDecision,
    FrameDropped,
    ServerMessage,
    SessionClosed,
    SessionMoved,
)

ANSWERED_WITHIN_S = 30.0
"""Seconds without any message after which the server is taken to have said all that it will."""
CUT_BEFORE_EVENTS = 60
"""Durable messages with which the connection is cut at the latest: of a hundred the client says that it has them, and
the server need not send them again."""
WRONG_STEP = "S999"

Progress = Callable[[int, int], None]
"""Takes the number of answered frames, and of all."""


def _answered(message: ServerMessage) -> int | None:
    """Seq of the frame that a message answers. An error says `duplicate_frame` of one that was on its way twice."""
    if isinstance(message, ErrorMessage):
        return None if message.code == "duplicate_frame" else message.seq
    return message.seq if isinstance(message, FrameDecision | FrameDropped) else None


@dataclass
class Heard:
    """What came on one connection."""

    messages: list[ServerMessage] = field(default_factory=list)

    @property
    def events(self) -> dict[int, ServerMessage]:
        """Durable messages by their numbers."""
        return {m.event: m for m in self.messages if isinstance(m, DurableMessage) and m.event is not None}

    @property
    def decisions(self) -> dict[int, FrameDecision]:
        return {m.seq: m for m in self.messages if isinstance(m, FrameDecision)}

    @property
    def answers(self) -> list[int]:
        """Seqs of the frames that were answered, as often as they were."""
        return [seq for m in self.messages if (seq := _answered(m)) is not None]

    @property
    def decided_to(self) -> int:
        """Seq up to which decisions are declared as lost or kept no more; -1: of none."""
        return max((m.decided_to for m in self.messages if isinstance(m, SessionMoved)), default=-1)


@dataclass
class Streamed:
    """What came of a clip.

    Attributes:
        num_frames: that were sent.
        first: heard before the connection was cut.
        second: heard on the next one, from the session's beginning.
        waits: seconds from sending a frame to its decision, where the connection stayed.
        forgotten: whether the session is unknown after DELETE.
    """

    num_frames: int
    first: Heard = field(default_factory=Heard)
    second: Heard = field(default_factory=Heard)
    waits: list[float] = field(default_factory=list)
    forgotten: bool = False

    @property
    def answered(self) -> set[int]:
        """Seqs of the frames that have an answer on either connection, or are declared as decided."""
        declared = range(max(self.first.decided_to, self.second.decided_to) + 1)
        return {*self.first.answers, *self.second.answers, *declared}


class Trial:
    """One session of a client that sends a clip in real pace.

    Args:
        client: of the deployment.
        clip: what is sent.
        interval: seconds between two frames.
        progress: called with (frames answered, frames in all) after each answer.
    """

    def __init__(self, client: ProspectClient, clip: Clip, interval: float, progress: Progress) -> None:
        self._client, self._clip, self._interval, self._progress = client, clip, interval, progress
        self._sent: dict[int, float] = {}
        self._streamed = Streamed(len(clip.frames))

    def run(self) -> Streamed:
        """Stream the clip; raises as the client does where the server refuses the session or cannot be reached."""
        client, clip, streamed = self._client, self._clip, self._streamed
        live = client.live(clip.goal, clip.steps, keep=True)
        try:
            with live:
                self._send(live, streamed.first, 0, len(clip.frames) // 2)
            self._sent.clear()
            with client.resume(live.created.resume, last_event=0, decided=-1) as again:
                self._send(again, streamed.second, again.created.next_seq, len(clip.frames))
                again.patch(**{WRONG_STEP: "completed"})
                self._listen(again, streamed.second, until=self._is_complete)
            client.close(live.session_id)
        except BaseException:
            with suppress(Exception):  # what went wrong first is said
                client.close(live.session_id)
            raise
        streamed.forgotten = self._is_unknown(live.session_id)
        return streamed

    def _send(self, live: LiveSession, heard: Heard, first: int, stop: int) -> None:
        """Send frames, each at its time, and listen meanwhile."""
        began = time.monotonic()
        for number, seq in enumerate(range(first, stop), 1):
            due = began + number * self._interval
            self._listen(live, heard, lambda due=due: time.monotonic() >= due, due)  # type: ignore[misc]
            if stop < len(self._clip.frames) and len(heard.events) >= CUT_BEFORE_EVENTS:
                return
            if seq in self._clip.texts:
                live.text(self._clip.texts[seq])
            self._sent[live.push(self._clip.frames[seq])] = time.monotonic()

    def _listen(self, live: LiveSession, heard: Heard, until: Callable[[], bool], due: float | None = None) -> None:
        """Hear messages until something holds, or nothing comes: up to `due`, or for `ANSWERED_WITHIN_S`."""
        with suppress(TimeoutError, ConnectionClosed):
            while not until():
                wait = ANSWERED_WITHIN_S if due is None else max(due - time.monotonic(), 0.001)
                message = live.receive(wait)
                heard.messages.append(message)
                if isinstance(message, FrameDecision) and message.seq in self._sent:
                    self._streamed.waits.append(time.monotonic() - self._sent.pop(message.seq))
                self._progress(len(self._streamed.answered), self._streamed.num_frames)
                if isinstance(message, SessionClosed):
                    return

    def _is_complete(self) -> bool:
        """Whether each frame is answered, and the wrong message too."""
        refused = any(isinstance(m, ErrorMessage) and m.seq is None for m in self._streamed.second.messages)
        return refused and self._streamed.answered >= set(range(self._streamed.num_frames))

    def _is_unknown(self, session_id: str) -> bool:
        for ask in (self._client.view, self._client.transcript):
            try:
                ask(session_id)
                return False
            except ServerError as error:
                if error.code != "unknown_session":
                    return False
        return True
