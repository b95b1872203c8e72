"""Connections between gateways, engines and encoders: msgpack over TCP, requests either way, in order.

Serve's own calls cost a task, two objects and several hops each; a session needs one message a frame.
"""

import asyncio
import hmac
import logging
import struct
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Protocol, cast

import msgpack

from prospect.errors import ProspectError, UnknownSessionError, session_error
from prospect.protocol.messages import ErrorMessage

log = logging.getLogger(__name__)

MAX_BYTES = 128 * 2**20
"""Most bytes of one message: the frames of a long context, as a session's log carries them."""
MAX_BUFFERED = 256 * 2**20
"""Bytes that wait for a peer that does not read; with more the connection is given up."""
GREETING_WITHIN_S = 5.0
_LENGTH = struct.Struct("!I")
_REQUEST, _ANSWER, _REFUSAL, _NOTICE = range(4)


class LostConnectionError(Exception):
    """The other process is gone, or does not answer."""


class Peer(Protocol):
    """What answers the other side of a connection."""

    def answer(self, connection: "Connection", operation: str, arguments: list[Any]) -> Awaitable[Any]:
        """Answer a request."""

    def notice(self, connection: "Connection", operation: str, arguments: list[Any]) -> None:
        """Take a message that has no answer."""

    def lost(self, connection: "Connection") -> None:
        """Learn that the connection is gone."""


class Connection(asyncio.Protocol):
    """One side of a connection; belongs to one event loop."""

    _transport: asyncio.Transport

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self._number = 0
        self._awaited: dict[int, asyncio.Future[Any]] = {}
        self._answering: set[asyncio.Task[None]] = set()
        self._received, self._unsent = bytearray(), list[bytes]()
        self._open = True

    @property
    def is_open(self) -> bool:
        return self._open

    async def call(self, operation: str, *arguments: Any, within: float | None = None) -> Any:
        """Ask the other side.

        Raises:
            LostConnectionError: it is gone, or has not answered within that many seconds.
            ProspectError: its refusal.
        """
        self._number = number = self._number + 1
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._awaited[number] = answer
        try:
            self._send(_REQUEST, number, operation, arguments)
            async with asyncio.timeout(within):
                return await answer
        except TimeoutError:
            raise LostConnectionError(f"{operation}: no answer within {within:g} seconds") from None
        finally:
            self._awaited.pop(number, None)
            answer.cancel()

    def notify(self, operation: str, *arguments: Any) -> None:
        """Tell the other side something; a connection that is lost loses it."""
        with suppress(LostConnectionError):
            self._send(_NOTICE, operation, arguments)

    def close(self) -> None:
        """Give the connection up; both sides learn of it."""
        if self._open:
            self._open = False
            self._flush()
            self._transport.abort()
            for answer in self._awaited.values():
                if not answer.done():
                    answer.set_exception(LostConnectionError("the connection is gone"))
                    answer.exception()
            self._peer.lost(self)

    def _send(self, *message: Any) -> None:
        """Send, together with all else that is sent in this turn of the event loop."""
        if not self._open:
            raise LostConnectionError("the connection is gone")
        data = msgpack.packb(message)
        if len(data) > MAX_BYTES:
            raise ValueError(f"a message of {len(data):,} bytes")
        if not self._unsent:
            asyncio.get_running_loop().call_soon(self._flush)
        self._unsent += (_LENGTH.pack(len(data)), data)

    def _flush(self) -> None:
        unsent, self._unsent = self._unsent, []
        if unsent and not self._transport.is_closing():
            self._transport.writelines(unsent)
        if self._open and self._transport.get_write_buffer_size() > MAX_BUFFERED:
            self.close()

    # The event loop's calls --------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's transport is not an asyncio.Transport

    def data_received(self, data: bytes) -> None:
        """Take the messages that are there as a whole."""
        self._received += data
        try:
            while self._open and (message := self._next_message()) is not None:
                self._take(msgpack.unpackb(message, use_list=True, strict_map_key=False))
        except LostConnectionError:
            self.close()
        except Exception:
            log.exception("a connection is closed after an unexpected error")
            self.close()

    def connection_lost(self, error: Exception | None) -> None:
        """End."""
        self.close()

    def _next_message(self) -> bytes | None:
        """Take the next message out of what was received; None: the rest of it is on its way.

        Raises:
            LostConnectionError: it is too long.
        """
        if len(self._received) < _LENGTH.size:
            return None
        (length,) = _LENGTH.unpack_from(self._received)
        if length > MAX_BYTES:
            raise LostConnectionError("a message is too long")
        end = _LENGTH.size + length
        if len(self._received) < end:
            return None
        message = bytes(memoryview(self._received)[_LENGTH.size : end])
        del self._received[:end]
        return message

    def _take(self, message: list[Any]) -> None:
        match message:
            case [kind, number, operation, arguments] if kind == _REQUEST:
                task = asyncio.create_task(self._answer(number, operation, arguments))
                self._answering.add(task)
                task.add_done_callback(self._answering.discard)
            case [kind, operation, arguments] if kind == _NOTICE:
                self._peer.notice(self, operation, arguments)
            case [kind, number, content]:
                awaited = self._awaited.get(number)
                if awaited is not None and not awaited.done():
                    if kind == _ANSWER:
                        awaited.set_result(content)
                    else:
                        awaited.set_exception(_refusal(*content))

    async def _answer(self, number: int, operation: str, arguments: list[Any]) -> None:
        try:
            answer = (_ANSWER, number, await self._peer.answer(self, operation, arguments))
        except ProspectError as error:
            answer = (_REFUSAL, number, (error.code, str(error), error.field))
        except Exception:
            log.exception("an answer to %s", operation)
            defect = ErrorMessage.defect()
            answer = (_REFUSAL, number, (defect.code, defect.message, None))
        with suppress(LostConnectionError):
            self._send(*answer)


def _refusal(code: str, message: str, field: str | None) -> ProspectError:
    if code == UnknownSessionError.code:
        return UnknownSessionError(message, field=field)
    return session_error(code, message, field)


class _Stranger(asyncio.Protocol):
    """Whoever has connected and has not said the secret; cut off where it says another, or nothing in time."""

    _transport: asyncio.Transport

    def __init__(self, secret: bytes, peer: Callable[[], Peer]) -> None:
        self._secret, self._peer, self._said = secret, peer, b""
        self._patience = asyncio.get_running_loop().call_later(GREETING_WITHIN_S, lambda: self._transport.abort())

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's transport is not an asyncio.Transport

    def data_received(self, data: bytes) -> None:
        """Make it a connection once it has said the secret."""
        self._said += data
        length = len(self._secret)
        if len(self._said) < length:
            return
        self._patience.cancel()
        if not hmac.compare_digest(self._said[:length], self._secret):
            self._transport.abort()
            return
        connection = Connection(self._peer())
        self._transport.set_protocol(connection)
        connection.connection_made(self._transport)
        connection.data_received(self._said[length:])

    def connection_lost(self, error: Exception | None) -> None:
        """End."""
        self._patience.cancel()


async def listen(host: str, secret: str, peer: Callable[[], Peer]) -> tuple[asyncio.Server, str]:
    """Listen on a free port; returns the server and its address, "host:port".

    Args:
        host: address of this node.
        secret: what a caller must know; one that does not is cut off.
        peer: makes what answers a connection.
    """
    server = await asyncio.get_running_loop().create_server(lambda: _Stranger(secret.encode(), peer), host, 0)
    name, port = server.sockets[0].getsockname()[:2]
    return server, f"{name}:{port}"


async def connect(address: str, secret: str, peer: Peer) -> Connection:
    """Connect to whoever listens at "host:port".

    Raises:
        LostConnectionError: nobody does.
    """
    host, _, port = address.rpartition(":")
    connecting = asyncio.get_running_loop().create_connection
    try:
        async with asyncio.timeout(GREETING_WITHIN_S):
            transport, connection = await connecting(lambda: Connection(peer), host, int(port))
    except (OSError, TimeoutError, ValueError) as error:
        raise LostConnectionError(f"{address}: {error}") from error
    transport.write(secret.encode())
    return connection
