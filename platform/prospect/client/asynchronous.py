"""The client for programs with asyncio: the methods of `ProspectClient` and `LiveSession`, to be awaited."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx
from pydantic import BaseModel
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from prospect.client.ledger import UNREACHABLE, Ledger, Patience
from prospect.client.requests import (
    JSON,
    STREAM,
    Frame,
    ServerError,
    answer_of,
    bearer,
    body_of,
    created_of,
    frames_request,
    opening,
    stream_lost,
    to_text,
    trusted,
)
from prospect.protocol.messages import (
    FrameOutcome,
    FramesResponse,
    ModelCard,
    ServerMessage,
    ServerStatus,
    SessionClose,
    SessionClosed,
    SessionCreated,
    SessionUpdate,
    SessionView,
    StatePatch,
    StateUpdated,
    TextAppend,
    Transcript,
)
from prospect.protocol.parsing import parse_server

M = TypeVar("M", bound=BaseModel)


class AsyncProspectClient:
    """A client of one server; see `ProspectClient`."""

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        *,
        key: str | None = None,
        fingerprint: str | None = None,
        timeout: float = 60.0,
    ) -> None:
        self.url = url.rstrip("/")
        self._fingerprint, self._timeout = fingerprint, timeout
        self._bearer = bearer(key)
        self._http = httpx.AsyncClient(
            base_url=self.url, timeout=timeout, trust_env=False, headers=self._bearer, verify=trusted()
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self._http.aclose()

    async def model(self) -> ModelCard:
        return await self._request(ModelCard, "GET", "/v1/model")

    async def status(self) -> ServerStatus:
        """How the deployment is."""
        return await self._request(ServerStatus, "GET", "/v1/status")

    async def create(self, goal: str = "", steps: Sequence[str] = (), **fields: Any) -> SessionCreated:
        return await self._request(SessionCreated, "POST", "/v1/sessions", opening(goal, steps, fields))

    async def push(self, session_id: str, *frames: Frame, seq: int | None = None) -> list[FrameOutcome]:
        request = frames_request(frames, self._fingerprint, seq)
        return (await self._request(FramesResponse, "POST", f"/v1/sessions/{session_id}/frames", request)).frames

    async def text(self, session_id: str, text: str) -> None:
        await self._send("POST", f"/v1/sessions/{session_id}/text", TextAppend(text=text))

    async def patch(self, session_id: str, **steps: Any) -> StateUpdated:
        return await self._request(StateUpdated, "PATCH", f"/v1/sessions/{session_id}/state", StatePatch(state=steps))

    async def view(self, session_id: str) -> SessionView:
        return await self._request(SessionView, "GET", f"/v1/sessions/{session_id}")

    async def transcript(self, session_id: str) -> Transcript:
        return await self._request(Transcript, "GET", f"/v1/sessions/{session_id}/transcript")

    async def record(self, session_id: str) -> dict[str, Any]:
        return await self._send("GET", f"/v1/sessions/{session_id}/record")

    async def close(self, session_id: str) -> SessionClosed:
        return await self._request(SessionClosed, "DELETE", f"/v1/sessions/{session_id}")

    def live(
        self, goal: str = "", steps: Sequence[str] = (), *, reconnect: bool = True, **fields: Any
    ) -> "AsyncLiveSession":
        """A session on a stream of its own, opened by `async with`."""
        return self._stream(opening(goal, steps, fields), reconnect)

    def resume(self, handle: str, *, reconnect: bool = True, **cursor: int) -> "AsyncLiveSession":
        """The session of a handle on a new stream, continued by `async with`."""
        return self._stream(SessionUpdate(resume=handle, **cursor), reconnect)

    def _stream(self, update: SessionUpdate, reconnect: bool) -> "AsyncLiveSession":
        url = self.url.replace("http", "ws", 1) + STREAM
        return AsyncLiveSession(url, Ledger(update, reconnect, self._fingerprint), self._timeout, self._bearer)

    async def _request(self, answer: type[M], method: str, path: str, body: BaseModel | None = None) -> M:
        return answer.model_validate(await self._send(method, path, body))

    async def _send(self, method: str, path: str, body: BaseModel | None = None) -> Any:
        answer = await self._http.request(method, path, content=body_of(body), headers=JSON)
        return answer_of(f"{self.url}{path}", answer.status_code, answer.text)


class AsyncLiveSession:
    """One session on a WebSocket; see `LiveSession`. Push from one task and iterate in another, or in turns."""

    def __init__(self, url: str, ledger: Ledger, timeout: float, headers: Mapping[str, str]) -> None:
        self._url, self._ledger, self._timeout, self._headers = url, ledger, timeout, headers
        self._left = False
        self._lock = asyncio.Lock()
        self._socket: ClientConnection

    async def __aenter__(self) -> Self:
        self._socket = await self._connect(self._ledger.opening())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.disconnect()

    async def __aiter__(self) -> AsyncIterator[ServerMessage]:
        """Yield the server's messages until the session is closed or this side disconnects; raises as `LiveSession`."""
        while not self._left:
            try:
                yield await self.receive()
            except ConnectionClosed:
                return

    @property
    def created(self) -> SessionCreated:
        """The server's answer to the last connection."""
        return self._ledger.created

    @property
    def session_id(self) -> str:
        return self.created.session_id

    async def receive(self) -> ServerMessage:
        """Return the next message; raises as `LiveSession.receive`."""
        await self._acknowledge()
        while True:
            socket = self._socket
            try:
                message = parse_server(await socket.recv())
            except ConnectionClosed as closed:
                await self._connect_again(socket, closed)
                continue
            if self._ledger.note(message):
                return message

    async def _acknowledge(self) -> None:
        if due := self._ledger.acknowledgement():
            async with self._lock:
                with suppress(ConnectionClosed):
                    await self._socket.send(to_text(due))

    async def push(self, frame: Frame, pts: float | None = None) -> int:
        """Send a frame; return its seq, by which `decision` refers to it, without waiting for that."""
        message = self._ledger.next_frame(frame, pts)
        await self._send(message)
        assert message.seq is not None
        return message.seq

    async def text(self, text: str) -> None:
        await self._send(self._ledger.text(text))

    async def patch(self, **steps: Any) -> None:
        """Set steps by id: `patch(S2="completed")`."""
        await self._send(StatePatch(state=steps))

    async def close(self) -> None:
        """Ask to close the session after what was sent; iterate on for the rest, up to `session.closed`."""
        self._ledger.closing = True
        await self._send(SessionClose())

    async def disconnect(self) -> None:
        """Close the connection; the session ends unless it was opened with `keep`."""
        if self._ledger.ends_with_client and not self._ledger.over:
            with suppress(ConnectionClosed):
                await self._socket.send(to_text(SessionClose()))
        self._ledger.over = self._left = True
        await self._socket.close()

    # Connections --------------------------------------------------------------------------------------------

    async def _connect(self, update: SessionUpdate) -> ClientConnection:
        # No limit on the queue: the server cuts off a client whose socket is not read.
        socket = await connect(
            self._url,
            additional_headers=self._headers,
            open_timeout=self._timeout,
            max_queue=None,
            max_size=None,
            proxy=None,
        )
        try:
            with suppress(ConnectionClosed):  # what the server says of it comes first
                await socket.send(to_text(update))
            async with asyncio.timeout(self._timeout):
                self._ledger.created = created_of(parse_server(await socket.recv()))
        except BaseException:
            await socket.close()
            raise
        return socket

    async def _connect_again(self, broken: ClientConnection, closed: ConnectionClosed) -> None:
        async with self._lock:
            if self._ledger.over:
                raise closed
            if self._socket is not broken:  # another task has done it
                return
            self._ledger.check_resumable(closed)
            patience = Patience(self._timeout)
            while True:
                try:
                    self._socket = await self._connect(self._ledger.resuming())
                    break
                except ServerError as refused:
                    if self._ledger.ends_with(refused):
                        raise closed from None
                    if not patience.allows(refused):
                        raise
                except UNREACHABLE as failure:
                    if not patience.allows(failure):
                        raise stream_lost(closed, self.created.resume) from failure
                await asyncio.sleep(patience.pause())
                if self._ledger.over:  # this side has left meanwhile
                    raise closed
            if self._ledger.over:
                await self._socket.close()
                raise closed
            with suppress(ConnectionClosed):  # whoever uses the connection next will notice
                for message in self._ledger.to_send_again():
                    await self._socket.send(to_text(message))
                if self._ledger.closing:
                    await self._socket.send(to_text(SessionClose()))

    async def _send(self, message: BaseModel) -> None:
        while True:
            async with self._lock:
                socket = self._socket
                again = self._ledger.keep(message)
                try:
                    await socket.send(to_text(message))
                    return
                except ConnectionClosed as error:
                    closed = error
            await self._connect_again(socket, closed)
            if again:  # it was sent with the others
                return
