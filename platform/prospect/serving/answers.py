"""Errors as HTTP answers."""

import math

from fastapi.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from prospect.errors import ProspectError, SessionError
from prospect.protocol.messages import ErrorMessage

RETRY_AFTER_S = 5
"""Seconds that a client is asked to wait where nobody knows how long it takes."""
STATUS = {
    "unauthorized": 401,
    "forbidden": 403,
    "unknown_session": 404,
    "duplicate_frame": 409,
    "sequence_gap": 409,
    "same_frame": 409,
    "fingerprint_mismatch": 409,
    "closed": 409,
    "session_exists": 409,
    "no_record": 409,
    "too_large": 413,
    "unsupported_media": 415,
    "busy": 429,
    "overloaded": 429,
    "out_of_pages": 429,
    "rate_limited": 429,
    "too_many_sessions": 429,
    "internal": 500,
    "unavailable": 503,
    "fenced": 503,
}
"""Of each code that has another status than 422."""


def refusal(error: ProspectError) -> JSONResponse:
    """The answer to a request that is refused."""
    seconds = error.retry_after if isinstance(error, SessionError) else None
    return error_answer(ErrorMessage.of(error), retry_after=RETRY_AFTER_S if seconds is None else math.ceil(seconds))


def error_answer(message: ErrorMessage, status: int | None = None, retry_after: int = RETRY_AFTER_S) -> JSONResponse:
    """An error as the body of an answer; `status` is that of its code, unless given."""
    status = STATUS.get(message.code, 422) if status is None else status
    headers = {}
    if status in (429, 503):
        headers["Retry-After"] = str(retry_after)
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return _Refusal(message, status, headers)


class _Refusal(JSONResponse):
    """Counted when it is sent, wherever in the application it was made."""

    def __init__(self, message: ErrorMessage, status: int, headers: dict[str, str]) -> None:
        super().__init__({"error": message.model_dump(include={"code", "message", "field"})}, status, headers)
        self._code = message.code

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["app"].state.monitor.refused(self._code)
        await super().__call__(scope, receive, send)
