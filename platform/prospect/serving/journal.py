"""What a session has said: durable messages by number, and its last decisions, for whoever reads or resumes it."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterable
from typing import Literal, Self

from prospect.protocol.messages import (
    DurableMessage,
    ErrorMessage,
    FrameDecision,
    ServerMessage,
    SessionMoved,
    SessionUpdate,
)
from prospect.serving.lease import Lease
from prospect.serving.settings import Durability, SessionLimits
from prospect.serving.watching import Watcher

Held = Literal["none", "durable", "all"]
_HELD: dict[Durability, Held] = {"none": "none", "events": "durable", "frames": "all"}


class Journal:
    """Keeps messages in the order in which they were said; belongs to one event loop.

    Args:
        max_events: durable messages that are kept for a client that has not acknowledged them.
        max_decisions: decisions that are kept.
        held: which messages are read only once a store has them (`release`): none, the durable ones, or all.

    Attributes:
        last_event: number of the last durable message.
        max_decisions: as given.
    """

    def __init__(self, max_events: int, max_decisions: int, held: Held = "none") -> None:
        self.last_event = 0
        self._held = held
        self._waiting: set[int] = set()
        """Positions of the messages that wait for the store."""
        self._max_events, self.max_decisions = max_events, max_decisions
        self._messages: dict[int, ServerMessage] = {}
        """By position, in order; positions count all messages from 0."""
        self._end = self._released = 0
        self._events: deque[tuple[int, int]] = deque()
        """(number, position) of the durable messages that are kept."""
        self._decisions: deque[tuple[int, int]] = deque()
        """(seq, position) of the decisions that are kept."""
        self._gone_event, self._gone_decision = 0, -1
        """The last durable message, and the seq of the last decision, that are kept no more."""
        self._read_event, self._read_decision = 0, -1
        """The last ones that were read by anybody."""
        self._reader: Reader | None = None
        self._watchers: set[Watcher] = set()
        self._finished = False

    @classmethod
    def of(cls, limits: SessionLimits, durability: Durability) -> Self:
        """Make that of a new session."""
        return cls(limits.max_unread_messages, limits.max_waiting_frames, _HELD[durability])

    @property
    def end(self) -> int:
        """Messages so far."""
        return self._end

    def add(self, message: ServerMessage, acts: bool = False) -> ServerMessage:
        """Append a message, which gets its number if it is durable, and wake the reader; returns it as it is kept.

        A decision that `acts` waits for the store as the durable messages do that follow it.

        Where a message has to be forgotten that the reader has not read, it is cut off: it reads one error, and then
        nothing.
        """
        if isinstance(message, DurableMessage):
            self.last_event += 1
            message = message.model_copy(update={"event": self.last_event})
            self._events.append((self.last_event, self._end))
            if len(self._events) > self._max_events:
                self._cut_off_before(self._events[0][1])
                self._gone_event = self._forget(self._events)
        elif isinstance(message, FrameDecision):
            self._decisions.append((message.seq, self._end))
            if len(self._decisions) > self.max_decisions:
                self._cut_off_before(self._decisions[0][1])
                self._gone_decision = self._forget(self._decisions)
        self._messages[self._end] = message
        self._end += 1
        if self._held == "all" or (self._held == "durable" and (acts or isinstance(message, DurableMessage))):
            self._waiting.add(self._end - 1)
        self.release(self._released)
        return message

    def release(self, end: int) -> None:
        """Let the first `end` messages be read, and those after them up to one that waits for the store."""
        self._waiting = {position for position in self._waiting if position >= end}
        before, self._released = self._released, min(self._waiting, default=self._end)
        if self._reader is not None:
            self._reader.awake.set()
        for watcher in self._watchers:
            watcher.tell(self._messages[each] for each in range(before, self._released) if each in self._messages)
        self._end_watchers()

    def restore(self, messages: Iterable[ServerMessage], last_event: int, gone_decision: int) -> None:
        """Begin with what another process has said: messages that are written, the durable ones with their numbers.

        Args:
            messages: in order.
            last_event: number of the last durable one.
            gone_decision: seq of the last decision that is not among them.
        """
        self._gone_decision = gone_decision
        for message in messages:
            if isinstance(message, DurableMessage) and message.event is not None:
                self.last_event = message.event - 1
            self.add(message)
        self.last_event = last_event
        self.release(self._end)

    def acknowledge(self, event: int) -> None:
        """Forget the durable messages up to a number: the client has them."""
        while self._events and self._events[0][0] <= event:
            self._gone_event = self._forget(self._events)

    def read(self, resumed: SessionUpdate | None = None) -> "Reader":
        """Begin to read; who read before has ended.

        Args:
            resumed: says what its client has, by `last_event` and `decided`: it is sent what is later. For one that is
                left out, it is sent what nobody has read. None: everything.
        """
        self.leave()
        event, decision = 0, -1
        if resumed is not None:
            event = self._read_event if resumed.last_event is None else resumed.last_event
            decision = self._read_decision if resumed.decided is None else resumed.decided
        lacking = (place for place, each in self._messages.items() if not _is_among(each, event, decision))
        reader = Reader(self, next(lacking, self._end), event, decision, self._missing(event, decision))
        self._reader = reader
        if self._finished:
            reader.end(drained=True)
        return reader

    def watch(self, last_event: int | None, lease: Lease | None = None) -> Watcher:
        """Begin to listen beside whoever reads.

        Args:
            last_event: number of the last durable message that the listener has: it is told what is later, the
                decisions too. None: it is told all that is kept.
            lease: of this gateway.
        """
        watcher = Watcher(self._watchers.discard, lease)
        places = [position for number, position in self._events if number == last_event]
        first = places[0] if places else 0
        kept = (each for position, each in self._messages.items() if first <= position < self._released)
        if last_event is not None:
            watcher.tell(self._missing(last_event, self._gone_decision))
        watcher.tell(each for each in kept if not _is_among(each, last_event or 0, -1))
        self._watchers.add(watcher)
        self._end_watchers()
        return watcher

    def abandon(self) -> None:
        """The session goes on in another gateway: end whoever reads or listens."""
        self.leave()
        for watcher in self._watchers:
            watcher.end(drained=False)

    def leave(self) -> None:
        """End whoever reads; what it has not read is kept."""
        if self._reader is not None:
            self._reader.end(drained=False)
            self._reader = None

    def finish(self) -> None:
        """Whoever reads, or comes to read, ends after the last message."""
        self._finished = True
        if self._reader is not None:
            self._reader.end(drained=True)
        self._end_watchers()

    def at(self, position: int) -> tuple[ServerMessage | None, bool]:
        """The message at a position, None if it is kept no more, and whether the journal goes that far."""
        return self._messages.get(position), position < self._released

    def is_read(self, position: int) -> bool:
        """Whether a position lies behind the last message."""
        return position >= self._end

    def note_read(self, message: ServerMessage) -> None:
        """Note that a reader has passed a message on."""
        if isinstance(message, DurableMessage):
            self._read_event = max(self._read_event, message.event or 0)
        elif isinstance(message, FrameDecision):
            self._read_decision = max(self._read_decision, message.seq)

    def _end_watchers(self) -> None:
        """Let listeners end, once they were told the last message."""
        if self._finished and self._released >= self._end:
            for watcher in self._watchers:
                watcher.end()

    def _missing(self, event: int, decision: int) -> list[ServerMessage]:
        """Messages that name what the client lacks and the journal keeps no more."""
        found: list[ServerMessage] = []
        if event < self._gone_event:
            lost = f"events {event + 1} to {self._gone_event} are kept no more"
            found.append(ErrorMessage(code="events_lost", message=f"last_event: {lost}", field="last_event"))
        if decision < self._gone_decision:
            found.append(SessionMoved(decided_to=self._gone_decision))
        return found

    def _cut_off_before(self, position: int) -> None:
        """Cut off a reader that has not come past a position."""
        if self._reader is not None and self._reader.position <= position:
            self._reader.cut_off(ErrorMessage(code="slow_client", message=_TOO_SLOW))
            self._reader = None

    def _forget(self, kept: deque[tuple[int, int]]) -> int:
        number, position = kept.popleft()
        self._messages.pop(position, None)
        return number


class Reader:
    """One connection's way through a journal.

    Args:
        journal: what is read.
        position: of the first message that its client lacks.
        event: number of the last durable message that its client has.
        decision: seq of the last decision that its client has.
        first: what its client is told before.

    Attributes:
        position: of the next message that it reads.
        awake: set whenever there may be something to read.
    """

    def __init__(self, journal: Journal, position: int, event: int, decision: int, first: list[ServerMessage]) -> None:
        self.position = position
        self.awake = asyncio.Event()
        self._journal, self._event, self._decision, self._first = journal, event, decision, first
        self._last: ServerMessage | None = None
        self._given: ServerMessage | None = None
        """Taken last; when the next is asked for, it has been passed on."""
        self._ended = self._drained = False

    async def __aiter__(self) -> AsyncIterator[ServerMessage]:
        """Yield messages until another reader takes over, or after the session's last one."""
        while True:
            self.awake.clear()
            while (message := self.take()) is not None:
                yield message
            if self._ended and (not self._drained or self._journal.is_read(self.position)):
                return
            await self.awake.wait()

    def take(self) -> ServerMessage | None:
        """The next message, if there is one already."""
        if self._given is not None:
            self._journal.note_read(self._given)
            self._given = None
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
            if message is not None and not _is_among(message, self._event, self._decision):
                self._given = message
                return message

    def end(self, drained: bool) -> None:
        """Read nothing more, or with `drained` what there is and then nothing."""
        self._ended, self._drained = True, drained
        self.awake.set()

    def cut_off(self, last: ServerMessage) -> None:
        """Read `last` and nothing more."""
        self._last = last
        self.end(drained=False)


def _is_among(message: ServerMessage, event: int, decision: int) -> bool:
    """Whether a client has a message that has the durable ones up to `event` and the decisions up to `decision`."""
    if isinstance(message, DurableMessage):
        return message.event is not None and message.event <= event
    return isinstance(message, FrameDecision) and message.seq <= decision


_TOO_SLOW = "stream: too many messages were not read; read faster, and resume with `last_event` and `decided`"
