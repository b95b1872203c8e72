"""The typed client of a served model: HTTP calls and live streams.

client = ProspectClient("http://127.0.0.1:8000")
with client.live(goal="Make tea", steps=["boil water", "steep"]) as live:
    live.push(Path("frame.jpg").read_bytes())
    for message in live: ...
"""

import json
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx
import numpy as np
from pydantic import BaseModel
from websockets.exceptions import ConnectionClosed, InvalidHandshake
from websockets.sync.client import ClientConnection, connect

from prospect.errors import ProspectError
from prospect.protocol.messages import (
    TAKEN_OVER,
    DurableMessage,
    EmbeddingMessage,
    ErrorMessage,
    EventAck,
    FrameAppend,
    FrameDecision,
    FrameDropped,
    FrameOutcome,
    FramesRequest,
    FramesResponse,
    ModelCard,
    ServerMessage,
    SessionClose,
    SessionClosed,
    SessionCreated,
    SessionMoved,
    SessionUpdate,
    SessionView,
    StatePatch,
    StateUpdated,
    TextAppend,
)
from prospect.protocol.parsing import parse_server

M = TypeVar("M", bound=BaseModel)
Frame = bytes | np.ndarray
"""A JPEG, PNG or WebP, or an embedding float16 [I, D]."""


ACKNOWLEDGED_EVERY = 100
"""Durable messages after which the server is told that it need not keep them."""
_PASSING = {"busy", "unavailable", "internal"}
"""Refusals of a server that may take the session a moment later."""


class ServerError(ProspectError):
    """A refusal of the server, in its words; `code` and `field` are the protocol's."""

    def __init__(self, message: str, code: str, field: str | None = None) -> None:
        super().__init__(message, field=field)
        self.code = code


class ProspectClient:
    """A client of one server.

    Args:
        url: such as http://127.0.0.1:8000.
        fingerprint: of the encoder that embeddings come from; only needed to push embeddings.
        timeout: seconds to wait for an answer.

    Every method raises `ServerError` for a refusal, and httpx's errors if the server cannot be reached.
    """

    def __init__(
        self, url: str = "http://127.0.0.1:8000", *, fingerprint: str | None = None, timeout: float = 60.0
    ) -> None:
        self.url = url.rstrip("/")
        self._fingerprint = fingerprint
        self._timeout = timeout
        self._http = httpx.Client(base_url=self.url, timeout=timeout, trust_env=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._http.close()

    def model(self) -> ModelCard:
        return self._request(ModelCard, "GET", "/v1/model")

    def create(self, goal: str = "", steps: Sequence[str] = (), **fields: Any) -> SessionCreated:
        """Open a session; `fields` are the other fields of `session.update`."""
        return self._request(SessionCreated, "POST", "/v1/sessions", _update(goal, steps, fields))

    def push(self, session_id: str, *frames: Frame, seq: int | None = None) -> list[FrameOutcome]:
        """Send frames, of which the first is `seq`, and wait for what is decided at each."""
        numbers = [None if seq is None else seq + i for i in range(len(frames))]
        request = FramesRequest(
            frames=tuple(
                _frame(frame, self._fingerprint, number) for frame, number in zip(frames, numbers, strict=True)
            )
        )
        return self._request(FramesResponse, "POST", f"/v1/sessions/{session_id}/frames", request).frames

    def text(self, session_id: str, text: str) -> None:
        """Send a text of the user; it joins the next frame."""
        self._send("POST", f"/v1/sessions/{session_id}/text", TextAppend(text=text))

    def patch(self, session_id: str, **steps: Any) -> StateUpdated:
        """Set steps by id: `patch(session_id, S2="completed")`."""
        return self._request(StateUpdated, "PATCH", f"/v1/sessions/{session_id}/state", StatePatch(state=steps))

    def view(self, session_id: str) -> SessionView:
        return self._request(SessionView, "GET", f"/v1/sessions/{session_id}")

    def close(self, session_id: str) -> SessionClosed:
        return self._request(SessionClosed, "DELETE", f"/v1/sessions/{session_id}")

    def live(
        self, goal: str = "", steps: Sequence[str] = (), *, reconnect: bool = True, **fields: Any
    ) -> "LiveSession":
        """Open a session on a stream of its own.

        Args:
            goal: of the task.
            steps: of the recipe.
            reconnect: whether to connect again where the connection breaks; tried for `timeout` seconds.
            fields: the other fields of `session.update`.
        """
        return self._stream(_update(goal, steps, fields), reconnect)

    def resume(self, handle: str, *, reconnect: bool = True, **cursor: int) -> "LiveSession":
        """Continue the session of a handle on a new stream.

        Args:
            handle: the last one that `session.created` brought.
            reconnect: as for `live`.
            cursor: `last_event` and `decided`, what this client has already; without them, what was not sent comes.
        """
        return self._stream(SessionUpdate(resume=handle, **cursor), reconnect)

    def _stream(self, update: SessionUpdate, reconnect: bool) -> "LiveSession":
        url = self.url.replace("http", "ws", 1) + "/v1/stream"
        return LiveSession(url, update, fingerprint=self._fingerprint, timeout=self._timeout, reconnect=reconnect)

    def _request(self, answer: type[M], method: str, path: str, body: BaseModel | None = None) -> M:
        return answer.model_validate(self._send(method, path, body))

    def _send(self, method: str, path: str, body: BaseModel | None = None) -> Any:
        content = None if body is None else body.model_dump_json(exclude_unset=True)
        answer = self._http.request(method, path, content=content, headers={"content-type": "application/json"})
        try:
            data = answer.json()
        except json.JSONDecodeError:
            raise ServerError(
                f"{self.url}{path}: answered {answer.status_code} with something else than JSON", "not_ours"
            ) from None
        if answer.is_error:
            error = ErrorMessage.model_validate(data["error"])
            raise ServerError(error.message, error.code, error.field)
        return data


class LiveSession:
    """One session on a WebSocket. Push from one thread and iterate from another, or in turns.

    A connection that breaks is made again: frames are kept until they are decided, and the server sends again what did
    not arrive.

    Attributes:
        created: the server's answer to the last connection.
    """

    def __init__(
        self, url: str, update: SessionUpdate, *, fingerprint: str | None, timeout: float, reconnect: bool = True
    ) -> None:
        self._url, self._timeout, self._reconnect, self._fingerprint = url, timeout, reconnect, fingerprint
        self._ends_with_us = reconnect and not update.keep and update.resume is None
        """Whether a session that is kept for the sake of its connections is to end when this side leaves."""
        self._over = False
        """Whether the stream may end: its session is closed, or this side has left."""
        self._frames: dict[int, FrameAppend] = {}
        """By seq, sent and neither decided nor dropped."""
        self._last_event = self._acknowledged = update.last_event or 0
        self._decided = -1 if update.decided is None else update.decided
        self._closing = False
        """Whether the session was asked to close."""
        self._lock = threading.Lock()
        """Held by whoever sends, or connects again."""
        if self._ends_with_us:
            update = update.model_copy(update={"keep": True})
        self._socket, self.created = self._connect(update)
        self._next_seq = self.created.next_seq

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.disconnect()

    def __iter__(self) -> Iterator[ServerMessage]:
        """Yield the server's messages until the session is closed, or this side disconnects.

        Raises:
            ServerError: `stream_lost`: the connection broke and could not be made again in time; the refusal of the
                server where it knows the session no more.
        """
        while True:
            try:
                yield self.receive()
            except ConnectionClosed:
                return

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
        while True:
            socket = self._socket
            try:
                message = parse_server(socket.recv(timeout))
            except ConnectionClosed as closed:
                if self._over:
                    raise
                self._connect_again(socket, closed)
                continue
            if self._note(message):
                return message

    def push(self, frame: Frame, pts: float | None = None) -> int:
        """Send a frame; return its seq, by which `decision` refers to it, without waiting."""
        seq = self._next_seq
        message = _frame(frame, self._fingerprint or self.created.fingerprint, seq, pts)
        self._next_seq += 1
        self._send(message)
        return seq

    def text(self, text: str) -> None:
        self._send(TextAppend(text=text))

    def patch(self, **steps: Any) -> None:
        """Set steps by id: `patch(S2="completed")`."""
        self._send(StatePatch(state=steps))

    def close(self) -> None:
        """Ask to close the session after what was sent; iterate on for the rest, up to `session.closed`."""
        self._closing = True
        self._send(SessionClose())

    def disconnect(self) -> None:
        """Close the connection; the session ends unless it was opened with `keep`."""
        if self._ends_with_us and not self._over:
            with suppress(ConnectionClosed):
                _write(self._socket, SessionClose())
        self._over = True
        self._socket.close()

    # Connections --------------------------------------------------------------------------------------------

    def _connect(self, update: SessionUpdate) -> tuple[ClientConnection, SessionCreated]:
        # No limit on the queue: the server cuts off a client whose socket is not read.
        socket = connect(self._url, open_timeout=self._timeout, max_queue=None, max_size=None, proxy=None)
        _write(socket, update)
        answer = parse_server(socket.recv(self._timeout))
        if not isinstance(answer, SessionCreated):
            socket.close()
            refused = answer if isinstance(answer, ErrorMessage) else None
            raise ServerError(*((refused.message, refused.code, refused.field) if refused else (str(answer), "?")))
        return socket, answer

    def _connect_again(self, broken: ClientConnection, closed: ConnectionClosed) -> None:
        """Resume the session on a new connection, and send again the frames that have not arrived."""
        with self._lock:
            if self._socket is not broken:  # somebody else has done it
                return
            if not self._reconnect or (closed.rcvd is not None and closed.rcvd.code == TAKEN_OVER):
                raise self._lost(closed)
            cursor = SessionUpdate(resume=self.created.resume, last_event=self._last_event, decided=self._decided)
            try:
                self._socket, self.created = self._connect_patiently(cursor, closed)
            except ServerError as refused:
                if self._closing and refused.code == "unknown_session":  # it was closed, as asked
                    self._over = True
                    raise closed from None
                raise
            with suppress(ConnectionClosed):  # whoever uses the connection next will notice
                for seq, frame in sorted(self._frames.items()):
                    if seq >= self.created.next_seq:
                        _write(self._socket, frame)

    def _connect_patiently(
        self, cursor: SessionUpdate, closed: ConnectionClosed
    ) -> tuple[ClientConnection, SessionCreated]:
        deadline, pause = time.monotonic() + self._timeout, 0.05
        while True:
            try:
                return self._connect(cursor)
            except ServerError as refused:
                if refused.code not in _PASSING or time.monotonic() > deadline:
                    raise
            except (OSError, TimeoutError, ConnectionClosed, InvalidHandshake):
                if time.monotonic() > deadline:
                    raise self._lost(closed) from None
            time.sleep(pause)
            pause = min(2 * pause, 2.0)

    def _lost(self, closed: ConnectionClosed) -> ServerError:
        how = f"code {closed.rcvd.code}" if closed.rcvd else "no farewell"
        text = f"stream: ended with {how} before session.closed; resume({self.created.resume!r}) continues it"
        return ServerError(text, "stream_lost")

    def _send(self, message: BaseModel) -> None:
        is_frame = isinstance(message, FrameAppend)
        while True:
            with self._lock:
                socket = self._socket
                if isinstance(message, FrameAppend) and message.seq is not None:
                    self._frames[message.seq] = message
                try:
                    _write(socket, message)
                    return
                except ConnectionClosed as closed:
                    if self._over:
                        raise
                    failure = closed
            self._connect_again(socket, failure)
            if is_frame:  # it was sent again with the others
                return

    def _note(self, message: ServerMessage) -> bool:
        """Note what has arrived; returns whether it is new."""
        event = message.event if isinstance(message, DurableMessage) else None
        if event is not None:
            if event <= self._last_event:
                return False
            self._last_event = event
            if event >= self._acknowledged + ACKNOWLEDGED_EVERY:
                self._acknowledged = event
                self._send(EventAck(event=event))
        match message:
            case FrameDecision():
                if message.seq <= self._decided:
                    return False
                self._decided = message.seq
                self._frames.pop(message.seq, None)
            case FrameDropped() | ErrorMessage(seq=int()):
                self._frames.pop(message.seq or 0, None)
            case SessionMoved():
                self._decided = max(self._decided, message.decided_to)
                self._frames = {seq: frame for seq, frame in self._frames.items() if seq > message.decided_to}
            case SessionClosed():
                self._over = True
        return True


def _write(socket: ClientConnection, message: BaseModel) -> None:
    content = message.model_dump(mode="json", exclude_unset=True)
    socket.send(json.dumps({"type": getattr(message, "type"), **content}))  # noqa: B009


def _update(goal: str, steps: Sequence[str], fields: dict[str, Any]) -> SessionUpdate:
    return SessionUpdate(goal=goal, steps=tuple(steps), **fields)


def _frame(frame: Frame, fingerprint: str | None, seq: int | None, pts: float | None = None) -> FrameAppend:
    given: dict[str, Any] = {"seq": seq} | ({} if pts is None else {"pts": pts})
    if isinstance(frame, bytes):
        return FrameAppend(image=frame, **given)
    if fingerprint is None:
        raise ProspectError("fingerprint: is missing; embeddings need that of their encoder", field="fingerprint")
    return FrameAppend(embedding=EmbeddingMessage.of(frame, fingerprint), **given)
