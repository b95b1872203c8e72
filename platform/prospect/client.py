"""The typed client of a served model: HTTP calls and live streams.

client = ProspectClient("http://127.0.0.1:8000")
with client.live(goal="Make tea", steps=["boil water", "steep"]) as live:
    live.push(Path("frame.jpg").read_bytes())
    for message in live: ...
"""

import json
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx
import numpy as np
from pydantic import BaseModel
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from prospect.errors import ProspectError
from prospect.protocol.messages import (
    EmbeddingMessage,
    ErrorMessage,
    FrameAppend,
    FrameOutcome,
    FramesRequest,
    FramesResponse,
    ModelCard,
    ServerMessage,
    SessionClose,
    SessionClosed,
    SessionCreated,
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

    def live(self, goal: str = "", steps: Sequence[str] = (), **fields: Any) -> "LiveSession":
        """Open a session on a stream of its own; `fields` are the other fields of `session.update`."""
        return self._connect(_update(goal, steps, fields))

    def resume(self, handle: str) -> "LiveSession":
        """Continue the session of a handle on a new stream."""
        return self._connect(SessionUpdate(resume=handle))

    def _connect(self, update: SessionUpdate) -> "LiveSession":
        url = self.url.replace("http", "ws", 1) + "/v1/stream"
        return LiveSession(url, update, fingerprint=self._fingerprint, timeout=self._timeout)

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

    Attributes:
        created: the server's first answer.
    """

    def __init__(self, url: str, update: SessionUpdate, *, fingerprint: str | None, timeout: float) -> None:
        self._fingerprint = fingerprint
        # No limit on the queue: the server cuts off a client whose socket is not read.
        self._socket = connect(url, open_timeout=timeout, max_queue=None, max_size=None, proxy=None)
        self._send(update)
        answer = self.receive(timeout)
        if not isinstance(answer, SessionCreated):
            self._socket.close()
            refused = answer if isinstance(answer, ErrorMessage) else None
            raise ServerError(*((refused.message, refused.code, refused.field) if refused else (str(answer), "?")))
        self.created = answer
        self._over = False
        """Whether the stream may end: its session is closed, or this side has left."""
        self._next_seq = answer.next_seq

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.disconnect()

    def __iter__(self) -> Iterator[ServerMessage]:
        """Yield the server's messages until the session is closed, or this side disconnects.

        Raises:
            ServerError: `stream_lost`: the stream ended before that; `resume` may continue the session.
        """
        while True:
            try:
                message = self.receive()
            except ConnectionClosed as closed:
                if self._over:
                    return
                how = f"code {closed.rcvd.code}" if closed.rcvd else "no farewell"
                text = f"stream: ended with {how} before session.closed; resume({self.created.resume!r}) continues it"
                raise ServerError(text, "stream_lost") from closed
            self._over = self._over or isinstance(message, SessionClosed)
            yield message

    @property
    def session_id(self) -> str:
        return self.created.session_id

    def receive(self, timeout: float | None = None) -> ServerMessage:
        """Return the next message.

        Raises:
            TimeoutError: no message came in time.
            ConnectionClosed: the connection is closed.
        """
        return parse_server(self._socket.recv(timeout))

    def push(self, frame: Frame, pts: float | None = None) -> int:
        """Send a frame; return its seq, by which `decision` refers to it, without waiting."""
        seq = self._next_seq
        self._send(_frame(frame, self._fingerprint or self.created.fingerprint, seq, pts))
        self._next_seq += 1
        return seq

    def text(self, text: str) -> None:
        self._send(TextAppend(text=text))

    def patch(self, **steps: Any) -> None:
        """Set steps by id: `patch(S2="completed")`."""
        self._send(StatePatch(state=steps))

    def close(self) -> None:
        """Ask to close the session after what was sent; iterate on for the rest, up to `session.closed`."""
        self._send(SessionClose())

    def disconnect(self) -> None:
        """Close the connection; the session ends unless it was opened with `keep`."""
        self._over = True
        self._socket.close()

    def _send(self, message: BaseModel) -> None:
        content = message.model_dump(mode="json", exclude_unset=True)
        self._socket.send(json.dumps({"type": getattr(message, "type"), **content}))  # noqa: B009


def _update(goal: str, steps: Sequence[str], fields: dict[str, Any]) -> SessionUpdate:
    return SessionUpdate(goal=goal, steps=tuple(steps), **fields)


def _frame(frame: Frame, fingerprint: str | None, seq: int | None, pts: float | None = None) -> FrameAppend:
    given: dict[str, Any] = {"seq": seq} | ({} if pts is None else {"pts": pts})
    if isinstance(frame, bytes):
        return FrameAppend(image=frame, **given)
    if fingerprint is None:
        raise ProspectError("fingerprint: is missing; embeddings need that of their encoder", field="fingerprint")
    return FrameAppend(embedding=EmbeddingMessage.of(frame, fingerprint), **given)
