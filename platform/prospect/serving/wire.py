"""Connections between gateways, engines and encoders: msgpack over TCP, requests either way, in order.

Serve's own calls cost a task, two objects and several hops each; a session needs one message a frame.
"""

import asyncio
import hmac
import logging
import struct
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Protocol

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


class Connection:
    """One side of a connection; belongs to one event loop.

    Attributes:
        heard: loop time at which the other side last sent something.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, peer: Peer) -> None:
        self._reader, self._writer, self._peer = reader, writer, peer
        self._number = 0
        self._awaited: dict[int, asyncio.Future[Any]] = {}
        self._answering: set[asyncio.Task[None]] = set()
        self._open = True
        self.heard = asyncio.get_running_loop().time()
        self._task = asyncio.create_task(self._read())
        _reading.add(self)

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
            return await asyncio.wait_for(answer, within)
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
            self._writer.transport.abort()
            for answer in self._awaited.values():
                if not answer.done():
                    answer.set_exception(LostConnectionError("the connection is gone"))
                    answer.exception()
            self._peer.lost(self)

    def _send(self, *message: Any) -> None:
        if not self._open:
            raise LostConnectionError("the connection is gone")
        data = msgpack.packb(message)
        if len(data) > MAX_BYTES:
            raise ValueError(f"a message of {len(data):,} bytes")
        self._writer.write(_LENGTH.pack(len(data)) + data)
        if self._writer.transport.get_write_buffer_size() > MAX_BUFFERED:
            self.close()

    async def _read(self) -> None:
        try:
            while True:
                (length,) = _LENGTH.unpack(await self._reader.readexactly(_LENGTH.size))
                if length > MAX_BYTES:
                    raise LostConnectionError("a message is too long")
                data = await self._reader.readexactly(length)
                self.heard = asyncio.get_running_loop().time()
                self._take(msgpack.unpackb(data, use_list=True, strict_map_key=False))
        except (OSError, EOFError, LostConnectionError):  # the usual ends
            pass
        except Exception:
            log.exception("a connection")
        finally:
            self.close()
            _reading.discard(self)

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


_reading: set[Connection] = set()
"""Connections whose tasks have not ended: the event loop refers to these weakly, and so to whoever waits for a peer."""


def _refusal(code: str, message: str, field: str | None) -> ProspectError:
    if code == UnknownSessionError.code:
        return UnknownSessionError(message, field=field)
    return session_error(code, message, field)


async def listen(host: str, secret: str, peer: Callable[[], Peer]) -> tuple[asyncio.Server, str]:
    """Listen on a free port; returns the server and its address, "host:port".

    Args:
        host: address of this node.
        secret: what a caller must know; one that does not is cut off.
        peer: makes what answers a connection.
    """

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        expected = secret.encode()
        try:
            given = await asyncio.wait_for(reader.readexactly(len(expected)), GREETING_WITHIN_S)
        except (OSError, EOFError, TimeoutError):
            given = b""
        if hmac.compare_digest(given, expected):
            Connection(reader, writer, peer())
        else:
            writer.transport.abort()

    server = await asyncio.start_server(greet, host, 0)
    name, port = server.sockets[0].getsockname()[:2]
    return server, f"{name}:{port}"


async def connect(address: str, secret: str, peer: Peer) -> Connection:
    """Connect to whoever listens at "host:port".

    Raises:
        LostConnectionError: nobody does.
    """
    host, _, port = address.rpartition(":")
    try:
        reader, writer = await asyncio.wait_for(asyncio.open_connection(host, int(port)), GREETING_WITHIN_S)
    except (OSError, TimeoutError, ValueError) as error:
        raise LostConnectionError(f"{address}: {error}") from error
    writer.write(secret.encode())
    return Connection(reader, writer, peer)
