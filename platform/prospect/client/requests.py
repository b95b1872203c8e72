"""What a client sends, made from what its user has, and what it reads out of the answers."""

import json
import os
import re
import ssl
from collections.abc import Sequence
from typing import Any

import numpy as np
from pydantic import BaseModel
from websockets.exceptions import ConnectionClosed

from prospect.errors import ProspectError
from prospect.protocol.messages import (
    EmbeddingMessage,
    ErrorMessage,
    FrameAppend,
    FramesRequest,
    ServerMessage,
    SessionCreated,
    SessionUpdate,
)

Frame = bytes | np.ndarray
"""A JPEG, PNG or WebP, or an embedding float16 [I, D]."""

STREAM = "/v1/stream"
API_KEY = "PROSPECT_API_KEY"
"""Environment variable with the API key of clients that are given none."""
JSON = {"content-type": "application/json"}


class ServerError(ProspectError):
    """A refusal of the server, in its words; `code` and `field` are the protocol's."""

    def __init__(self, message: str, code: str, field: str | None = None) -> None:
        super().__init__(message, field=field)
        self.code = code

    @classmethod
    def of(cls, refused: ErrorMessage) -> "ServerError":
        return cls(refused.message, refused.code, refused.field)


def bearer(key: str | None) -> dict[str, str]:
    """Headers of every request: with the key that is given, or that of the environment.

    Raises:
        ServerError: the key has a character that no API key has, and cannot be sent in a header.
    """
    key = os.environ.get(API_KEY, "") if key is None else key
    if not key:
        return {}
    if not re.fullmatch(r"[!-~]+", key):  # never repeated: it may be a secret of something else
        raise ServerError(f"key: has spaces or characters that no API key has; see {API_KEY}", "unauthorized", "key")
    return {"Authorization": f"Bearer {key}"}


def trusted() -> ssl.SSLContext:
    """The authorities that this machine trusts, or those of `SSL_CERT_FILE`, as streams use them by themselves."""
    return ssl.create_default_context()


def opening(goal: str, steps: Sequence[str], fields: dict[str, Any]) -> SessionUpdate:
    return SessionUpdate(goal=goal, steps=tuple(steps), **fields)


def frame_message(frame: Frame, fingerprint: str | None, seq: int | None, pts: float | None = None) -> FrameAppend:
    """A frame as the protocol carries it.

    Raises:
        ProspectError: an embedding without the fingerprint of its encoder.
    """
    given: dict[str, Any] = {"seq": seq} | ({} if pts is None else {"pts": pts})
    if isinstance(frame, bytes):
        return FrameAppend(image=frame, **given)
    if fingerprint is None:
        raise ProspectError("fingerprint: is missing; embeddings need that of their encoder", field="fingerprint")
    return FrameAppend(embedding=EmbeddingMessage.of(frame, fingerprint), **given)


def frames_request(frames: Sequence[Frame], fingerprint: str | None, seq: int | None) -> FramesRequest:
    """Frames of which the first is `seq`; raises as `frame_message`."""
    numbers = [None if seq is None else seq + index for index in range(len(frames))]
    return FramesRequest(
        frames=tuple(frame_message(frame, fingerprint, number) for frame, number in zip(frames, numbers, strict=True))
    )


def to_text(message: BaseModel) -> str:
    """A message of a stream as JSON, without what was not set."""
    content = message.model_dump(mode="json", exclude_unset=True)
    return json.dumps({"type": getattr(message, "type"), **content})  # noqa: B009


def body_of(body: BaseModel | None) -> str | None:
    return None if body is None else body.model_dump_json(exclude_unset=True)


def answer_of(url: str, status: int, text: str) -> Any:
    """An answer's JSON.

    Raises:
        ServerError: the server refuses the request, or answers with something else than JSON.
    """
    try:
        data = json.loads(text)
    except json.JSONDecodeError:
        raise ServerError(f"{url}: answered {status} with something else than JSON", "not_ours") from None
    if status >= 400:
        raise ServerError.of(ErrorMessage.model_validate(data["error"]))
    return data


def created_of(answer: ServerMessage) -> SessionCreated:
    """The server's first message.

    Raises:
        ServerError: it refuses the session.
    """
    if isinstance(answer, SessionCreated):
        return answer
    raise ServerError.of(answer) if isinstance(answer, ErrorMessage) else ServerError(str(answer), "not_ours")


def stream_lost(closed: ConnectionClosed, handle: str) -> ServerError:
    how = f"code {closed.rcvd.code}" if closed.rcvd else "no farewell"
    return ServerError(
        f"stream: ended with {how} before session.closed; resume({handle!r}) continues it", "stream_lost"
    )
