"""What a session has said: its durable messages by number, and its last decisions, for whoever reads or resumes it."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator

from prospect.protocol.messages import (
    DurableMessage,
    ErrorMessage,
    FrameDecision,
    ServerMessage,
    SessionMoved,
    SessionUpdate,
)


class Journal:
    """Keeps messages in the order in which they were said; belongs to one event loop.

    Args:
        max_events: durable messages that are kept for a client that has not acknowledged them.
        max_decisions: decisions that are kept.

    Attributes:
        last_event: number of the last durable message.
    """

    def __init__(self, max_events: int, max_decisions: int) -> None:
        self.last_event = 0
        self._max_events, self._max_decisions = max_events, max_decisions
        self._messages: dict[int, ServerMessage] = {}
        """By position, in order; positions count all messages from 0."""
        self._end = 0
        self._events: deque[tuple[int, int]] = deque()
        """(number, position) of the durable messages that are kept."""
        self._decisions: deque[tuple[int, int]] = deque()
        """(seq, position) of the decisions that are kept."""
        self._gone_event, self._gone_decision = 0, -1
        """The last durable message, and the seq of the last decision, that are kept no more."""
        self._reader: Reader | None = None
        self._read_to = 0
        """Position up to which somebody has read."""

    def add(self, message: ServerMessage) -> None:
        """Append a message, which gets its number if it is durable, and wake the reader.

        A reader that is `max_events` messages behind is cut off: it reads one error, and then nothing.
        """
        if isinstance(message, DurableMessage):
            self.last_event += 1
            message = message.model_copy(update={"event": self.last_event})
            self._events.append((self.last_event, self._end))
            if len(self._events) > self._max_events:
                self._gone_event = self._forget(self._events)
        elif isinstance(message, FrameDecision):
            self._decisions.append((message.seq, self._end))
            if len(self._decisions) > self._max_decisions:
                self._gone_decision = self._forget(self._decisions)
        self._messages[self._end] = message
        self._end += 1
        reader = self._reader
        if reader is not None:
            if self._end - reader.position > self._max_events:
                reader.cut_off(ErrorMessage(code="slow_client", message=_TOO_SLOW))
                self._reader = None
            reader.awake.set()

    def acknowledge(self, event: int) -> None:
        """Forget the durable messages up to a number: the client has them."""
        while self._events and self._events[0][0] <= event:
            self._gone_event = max(self._gone_event, self._forget(self._events))

    def read(self, resumed: SessionUpdate | None = None) -> "Reader":
        """Begin to read; who read before has ended.

        Args:
            resumed: says what its client has: with `last_event`, or `decided`, it is sent what is later than these;
                without them what nobody has read. None: everything.
        """
        self.leave()
        position, cursor = 0, SessionUpdate()
        if resumed is not None:
            told = resumed.last_event is not None or resumed.decided is not None
            position, cursor = (0, resumed) if told else (self._read_to, SessionUpdate())
        self._reader = Reader(self, position, cursor, self._missing(cursor))
        return self._reader

    def leave(self) -> None:
        """End whoever reads; what it has not read is kept."""
        if self._reader is not None:
            self._reader.end(drained=False)
            self._reader = None

    def finish(self, last: ServerMessage) -> None:
        """Append the last message; whoever reads ends after it."""
        self.add(last)
        if self._reader is not None:
            self._reader.end(drained=True)
            self._reader = None

    def _missing(self, cursor: SessionUpdate) -> list[ServerMessage]:
        """What a client that resumes has to be told of: messages that it lacks and that are kept no more."""
        found: list[ServerMessage] = []
        if cursor.last_event is not None and cursor.last_event < self._gone_event:
            lost = f"events {cursor.last_event + 1} to {self._gone_event} are kept no more"
            found.append(ErrorMessage(code="events_lost", message=f"last_event: {lost}", field="last_event"))
        if cursor.decided is not None and cursor.decided < self._gone_decision:
            found.append(SessionMoved(decided_to=self._gone_decision))
        return found

    def at(self, position: int) -> tuple[ServerMessage | None, bool]:
        """The message at a position, None if it is kept no more, and whether the journal goes that far."""
        self._read_to = max(self._read_to, position)
        return self._messages.get(position), position < self._end

    def _forget(self, kept: deque[tuple[int, int]]) -> int:
        number, position = kept.popleft()
        self._messages.pop(position, None)
        return number


class Reader:
    """One connection's way through a journal.

    Attributes:
        position: of the next message that it reads.
        awake: set whenever there may be something to read.
    """

    def __init__(self, journal: Journal, position: int, cursor: SessionUpdate, first: list[ServerMessage]) -> None:
        self.position = position
        self.awake = asyncio.Event()
        self._journal, self._cursor, self._first = journal, cursor, first
        self._last: ServerMessage | None = None
        self._ended = self._drained = False

    async def __aiter__(self) -> AsyncIterator[ServerMessage]:
        """Yield messages until another reader takes over, or after the session's last one."""
        while True:
            self.awake.clear()
            while (message := self.take()) is not None:
                yield message
            if self._ended:
                return
            await self.awake.wait()

    def take(self) -> ServerMessage | None:
        """The next message, if there is one already."""
        if self._ended and not self._drained:
            last, self._last = self._last, None
            return last
        if self._first:
            return self._first.pop(0)
        while True:
            message, there = self._journal.at(self.position)
            if not there:
                return None
            self.position += 1
            if message is not None and not self._has(message):
                return message

    def end(self, drained: bool) -> None:
        """Read nothing more, or with `drained` what there is and then nothing."""
        self._ended, self._drained = True, drained
        self.awake.set()

    def cut_off(self, last: ServerMessage) -> None:
        """Read `last` and nothing more."""
        self._last = last
        self.end(drained=False)

    def _has(self, message: ServerMessage) -> bool:
        cursor = self._cursor
        if isinstance(message, DurableMessage):
            return message.event is not None and message.event <= (cursor.last_event or 0)
        return isinstance(message, FrameDecision) and message.seq <= (-1 if cursor.decided is None else cursor.decided)


_TOO_SLOW = "stream: too many messages were not read; read faster, and resume with `last_event`"
