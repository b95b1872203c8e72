"""Listeners who only watch a session, from whichever gateway owns it."""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from prospect.errors import session_error, unknown_session
from prospect.protocol.messages import DurableMessage, ErrorMessage, ServerMessage, SessionGoingAway
from prospect.serving.lease import Lease
from prospect.serving.session_ids import name_of
from prospect.serving.wire import Connection, LostConnectionError, connect

MAX_WAITING = 1000
"""Messages that wait for a listener who does not read; with one more it is cut off."""
WITHIN_S = 10.0
"""Seconds within which the session's gateway answers another one."""

Said = tuple[int | None, str]
"""Number of a durable message, else None; the message as JSON."""


class Watcher:
    """What one listener has not read; belongs to one event loop.

    Args:
        leave: what `close` does; the listener hears nothing after it.
        lease: of the gateway that owns the session; None: another one does, or there is no store.
    """

    def __init__(self, leave: Callable[["Watcher"], None], lease: Lease | None = None) -> None:
        self._leave, self._lease = leave, lease
        self._waiting: deque[Said] = deque()
        self._awake = asyncio.Event()
        self._is_over = False

    @property
    def is_done(self) -> bool:
        """Whether all is read and nothing more comes."""
        return self._is_over and not self._waiting

    def tell(self, messages: Iterable[ServerMessage]) -> None:
        """Add messages; a listener must not get the handle with which the session is taken over."""
        for message in messages:
            number = message.event if isinstance(message, DurableMessage) else None
            hidden = {"resume"} if isinstance(message, SessionGoingAway) else None
            self.put((number, message.model_dump_json(exclude_none=True, exclude=hidden)))

    def put(self, said: Said) -> None:
        """Add a message; where too many wait, the listener reads one error and then nothing."""
        if len(self._waiting) >= MAX_WAITING and not self._is_over:
            self._waiting.clear()
            message = "events: too many messages were not read; read faster, and go on with Last-Event-ID"
            said = (None, ErrorMessage(code="slow_client", message=message).model_dump_json(exclude_none=True))
            self.end()
        elif self._is_over:
            return
        self._waiting.append(said)
        self._awake.set()

    def end(self, drained: bool = True) -> None:
        """Let the listener read what there is, or nothing, and end."""
        self._is_over = True
        if not drained:
            self._waiting.clear()
        self._awake.set()

    async def take(self, within: float | None = None) -> Said | None:
        """Return the next message; None: it `is_done`, or none came within that many seconds."""
        try:
            async with asyncio.timeout(within):
                while not self._waiting and not self._is_over:
                    self._awake.clear()
                    await self._awake.wait()
        except TimeoutError:
            return None
        if self._lease is not None:
            await self._lease.hold()  # where it is lost, the session's journal ends this without a drop
        return self._waiting.popleft() if self._waiting else None

    def close(self) -> None:
        """Listen no more."""
        self.end(drained=False)
        self._leave(self)


class Session(Protocol):
    """A session of this gateway."""

    @property
    def journal(self) -> "Journal":
        """What it says."""


class Journal(Protocol):
    """What a session says."""

    def watch(self, last_event: int | None, lease: Lease | None) -> Watcher:
        """Begin to listen behind the durable message of that number; None: with all that is kept."""


class Gateway(Protocol):
    """The gateway that a listener has reached."""

    secret: str
    lease: Lease | None
    relays: set[Watcher]
    """Listeners to sessions of other gateways; closed when this one stops."""

    async def owner_of(self, session_id: str) -> str | None:
        """The address of the gateway that owns a session; None: this one, or nobody."""

    def find(self, session_id: str) -> Session | None:
        """A session of this gateway, also one that has ended not long ago."""


async def watch(gateway: Gateway, session_id: str, last_event: int | None) -> Watcher:
    """Listen to a session, wherever it is.

    Raises:
        SessionError: `unknown_session`; `unavailable`: its gateway has just died.
    """
    owner = await gateway.owner_of(session_id)
    if owner is None:
        return watch_here(gateway, session_id, last_event)
    try:
        return await _watch_at(owner, gateway, session_id, last_event)
    except LostConnectionError as error:
        raise session_error("unavailable", "the session's gateway does not answer; try again") from error


def watch_here(gateway: Gateway, session_id: str, last_event: int | None) -> Watcher:
    """Listen to a session of this gateway; raises `unknown_session`."""
    session = gateway.find(session_id)
    if session is None:
        raise unknown_session(name_of(session_id))
    return session.journal.watch(last_event, gateway.lease)


async def _watch_at(owner: str, gateway: Gateway, session_id: str, last_event: int | None) -> Watcher:
    def leave(watcher: Watcher) -> None:
        gateway.relays.discard(watcher)
        connection.close()

    watcher = Watcher(leave)
    connection = await connect(owner, gateway.secret, _Relay(watcher))
    gateway.relays.add(watcher)
    try:
        await connection.call("watch", session_id, last_event, within=WITHIN_S)
    except BaseException:
        watcher.close()
        raise
    return watcher


class _Relay:
    """Hears a session of another gateway."""

    def __init__(self, watcher: Watcher) -> None:
        self._watcher = watcher

    async def answer(self, connection: Connection, operation: str, arguments: list[Any]) -> Any:
        raise session_error("internal", f"operation {operation!r} is unknown")

    def notice(self, connection: Connection, operation: str, arguments: list[Any]) -> None:
        """Take a message, or learn that there are no more."""
        if operation == "said":
            self._watcher.put((arguments[0], arguments[1]))
        else:
            self._watcher.end()

    def lost(self, connection: Connection) -> None:
        self._watcher.end()


async def retell(watcher: Watcher, connection: Connection) -> None:
    """Tell another gateway what a session of this one says, until either ends."""
    while (said := await watcher.take()) is not None:
        connection.notify("said", *said)
    connection.notify("over")
