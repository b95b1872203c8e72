"""A live session for programs with threads."""

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

from pydantic import BaseModel
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from prospect.client.ledger import UNREACHABLE, Ledger, Patience
from prospect.client.requests import Frame, ServerError, created_of, stream_lost, to_text
from prospect.protocol.messages import (
    ServerMessage,
    SessionClose,
    SessionCreated,
    SessionUpdate,
    StatePatch,
)
from prospect.protocol.parsing import parse_server


class LiveSession:
    """One session on a WebSocket. Push from one thread and iterate from another, or in turns.

    A connection that breaks is made again: frames are kept until they are decided, and the server sends again what did
    not arrive.
    """

    def __init__(self, url: str, ledger: Ledger, timeout: float, headers: Mapping[str, str]) -> None:
        self._url, self._ledger, self._timeout, self._headers = url, ledger, timeout, headers
        self._left = False
        self._lock = threading.Lock()
        """Held by whoever sends, or connects again."""
        self._socket = self._connect(ledger.opening())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.disconnect()

    def __iter__(self) -> Iterator[ServerMessage]:
        """Yield the server's messages until the session is closed, or this side disconnects.

        Raises:
            ServerError: `stream_lost`: the connection broke and could not be made again in time, or another stream has
                the session now; the server's refusal where it knows the session no more.
        """
        while not self._left:
            try:
                yield self.receive()
            except ConnectionClosed:
                return

    @property
    def created(self) -> SessionCreated:
        """The server's answer to the last connection."""
        return self._ledger.created

    @property
    def session_id(self) -> str:
        return self.created.session_id

    def receive(self, timeout: float | None = None) -> ServerMessage:
        """Return the next message.

        Raises:
            TimeoutError: no message came in time.
            ConnectionClosed: the session is closed, or this side has left.
            ServerError: as for iteration.
        """
        self._acknowledge()
        while True:
            socket = self._socket
            try:
                message = parse_server(socket.recv(timeout))
            except ConnectionClosed as closed:
                self._connect_again(socket, closed)
                continue
            if self._ledger.note(message):
                return message

    def _acknowledge(self) -> None:
        """Tell the server what it need not keep; lost with a connection, it is told the next time."""
        if due := self._ledger.acknowledgement():
            with self._lock, suppress(ConnectionClosed):
                self._socket.send(to_text(due))

    def push(self, frame: Frame, pts: float | None = None) -> int:
        """Send a frame; return its seq, by which `decision` refers to it, without waiting."""
        message = self._ledger.next_frame(frame, pts)
        self._send(message)
        assert message.seq is not None
        return message.seq

    def text(self, text: str) -> None:
        self._send(self._ledger.text(text))

    def patch(self, **steps: Any) -> None:
        """Set steps by id: `patch(S2="completed")`."""
        self._send(StatePatch(state=steps))

    def close(self) -> None:
        """Ask to close the session after what was sent; iterate on for the rest, up to `session.closed`."""
        self._ledger.closing = True
        self._send(SessionClose())

    def disconnect(self) -> None:
        """Close the connection; the session ends unless it was opened with `keep`."""
        if self._ledger.ends_with_client and not self._ledger.over:
            with suppress(ConnectionClosed):
                self._socket.send(to_text(SessionClose()))
        self._ledger.over = self._left = True
        self._socket.close()

    # Connections --------------------------------------------------------------------------------------------

    def _connect(self, update: SessionUpdate) -> ClientConnection:
        # No limit on the queue: the server cuts off a client whose socket is not read.
        socket = connect(
            self._url,
            additional_headers=self._headers,
            open_timeout=self._timeout,
            max_queue=None,
            max_size=None,
            proxy=None,
        )
        try:
            with suppress(ConnectionClosed):  # what the server says of it comes first
                socket.send(to_text(update))
            self._ledger.created = created_of(parse_server(socket.recv(self._timeout)))
        except BaseException:
            socket.close()
            raise
        return socket

    def _connect_again(self, broken: ClientConnection, closed: ConnectionClosed) -> None:
        """Resume the session on a new connection, and send again the frames that have not arrived."""
        with self._lock:
            if self._ledger.over:
                raise closed
            if self._socket is not broken:  # somebody else has done it
                return
            self._ledger.check_resumable(closed)
            patience = Patience(self._timeout)
            while True:
                try:
                    self._socket = self._connect(self._ledger.resuming())
                    break
                except ServerError as refused:
                    if self._ledger.ends_with(refused):
                        raise closed from None
                    if not patience.allows(refused):
                        raise
                except UNREACHABLE as failure:
                    if not patience.allows(failure):
                        raise stream_lost(closed, self.created.resume) from failure
                time.sleep(patience.pause())
                if self._ledger.over:  # this side has left meanwhile
                    raise closed
            if self._ledger.over:
                self._socket.close()
                raise closed
            with suppress(ConnectionClosed):  # whoever uses the connection next will notice
                for message in self._ledger.to_send_again():
                    self._socket.send(to_text(message))
                if self._ledger.closing:
                    self._socket.send(to_text(SessionClose()))

    def _send(self, message: BaseModel) -> None:
        while True:
            with self._lock:
                socket = self._socket
                again = self._ledger.keep(message)
                try:
                    socket.send(to_text(message))
                    return
                except ConnectionClosed as error:
                    closed = error
            self._connect_again(socket, closed)
            if again:  # it was sent with the others
                return
