"""HTTP calls, and the way to live sessions."""

from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx
from pydantic import BaseModel

from prospect.client.ledger import Ledger
from prospect.client.live import LiveSession
from prospect.client.requests import JSON, STREAM, Frame, answer_of, bearer, body_of, frames_request, opening, trusted
from prospect.protocol.messages import (
    FrameOutcome,
    FramesResponse,
    ModelCard,
    ServerStatus,
    SessionClosed,
    SessionCreated,
    SessionUpdate,
    SessionView,
    StatePatch,
    StateUpdated,
    TextAppend,
    Transcript,
)

M = TypeVar("M", bound=BaseModel)


class ProspectClient:
    """A client of one server.

    Args:
        url: such as http://127.0.0.1:8000.
        key: API key; None: that of the environment variable PROSPECT_API_KEY, if there is one.
        fingerprint: of the encoder that embeddings come from; only needed to push embeddings.
        timeout: seconds to wait for an answer.

    Every method raises `ServerError` for a refusal, and httpx's errors if the server cannot be reached.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        *,
        key: str | None = None,
        fingerprint: str | None = None,
        timeout: float = 60.0,
    ) -> None:
        self.url = url.rstrip("/")
        self._fingerprint = fingerprint
        self._timeout = timeout
        self._bearer = bearer(key)
        self._http = httpx.Client(
            base_url=self.url, timeout=timeout, trust_env=False, headers=self._bearer, verify=trusted()
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._http.close()

    def model(self) -> ModelCard:
        return self._request(ModelCard, "GET", "/v1/model")

    def status(self) -> ServerStatus:
        """How the deployment is."""
        return self._request(ServerStatus, "GET", "/v1/status")

    def create(self, goal: str = "", steps: Sequence[str] = (), **fields: Any) -> SessionCreated:
        """Open a session; `fields` are the other fields of `session.update`."""
        return self._request(SessionCreated, "POST", "/v1/sessions", opening(goal, steps, fields))

    def push(self, session_id: str, *frames: Frame, seq: int | None = None) -> list[FrameOutcome]:
        """Send frames, of which the first is `seq`, and wait for what is decided at each."""
        request = frames_request(frames, self._fingerprint, seq)
        return self._request(FramesResponse, "POST", f"/v1/sessions/{session_id}/frames", request).frames

    def text(self, session_id: str, text: str) -> None:
        """Send a text of the user; it joins the next frame."""
        self._send("POST", f"/v1/sessions/{session_id}/text", TextAppend(text=text))

    def patch(self, session_id: str, **steps: Any) -> StateUpdated:
        """Set steps by id: `patch(session_id, S2="completed")`."""
        return self._request(StateUpdated, "PATCH", f"/v1/sessions/{session_id}/state", StatePatch(state=steps))

    def view(self, session_id: str) -> SessionView:
        return self._request(SessionView, "GET", f"/v1/sessions/{session_id}")

    def transcript(self, session_id: str) -> Transcript:
        return self._request(Transcript, "GET", f"/v1/sessions/{session_id}/transcript")

    def record(self, session_id: str) -> dict[str, Any]:
        """The session as a canonical record, to train and score on; without its frames."""
        return self._send("GET", f"/v1/sessions/{session_id}/record")

    def close(self, session_id: str) -> SessionClosed:
        return self._request(SessionClosed, "DELETE", f"/v1/sessions/{session_id}")

    def live(self, goal: str = "", steps: Sequence[str] = (), *, reconnect: bool = True, **fields: Any) -> LiveSession:
        """Open a session on a stream of its own.

        Args:
            goal: of the task.
            steps: of the recipe.
            reconnect: whether to connect again where the connection breaks; tried for `timeout` seconds.
            fields: the other fields of `session.update`.
        """
        return self._stream(opening(goal, steps, fields), reconnect)

    def resume(self, handle: str, *, reconnect: bool = True, **cursor: int) -> LiveSession:
        """Continue the session of a handle on a new stream.

        Args:
            handle: the last one that `session.created` brought.
            reconnect: as for `live`.
            cursor: `last_event` and `decided`, what this client has already; without them, what was not sent comes.
        """
        return self._stream(SessionUpdate(resume=handle, **cursor), reconnect)

    def _stream(self, update: SessionUpdate, reconnect: bool) -> LiveSession:
        url = self.url.replace("http", "ws", 1) + STREAM
        return LiveSession(url, Ledger(update, reconnect, self._fingerprint), self._timeout, self._bearer)

    def _request(self, answer: type[M], method: str, path: str, body: BaseModel | None = None) -> M:
        return answer.model_validate(self._send(method, path, body))

    def _send(self, method: str, path: str, body: BaseModel | None = None) -> Any:
        answer = self._http.request(method, path, content=body_of(body), headers=JSON)
        return answer_of(f"{self.url}{path}", answer.status_code, answer.text)
