"""HTTP and WebSocket over any `Core` (docs/protocol.md). No Ray: a test runs it over a host in its own process."""

from functools import partial
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, TypeAdapter, ValidationError
from starlette.exceptions import HTTPException

from prospect.errors import ProspectError, SessionError
from prospect.protocol.messages import (
    ErrorMessage,
    FrameAppend,
    FramesRequest,
    FramesResponse,
    ModelCard,
    SessionClosed,
    SessionCreated,
    SessionUpdate,
    SessionView,
    StatePatch,
    StateUpdated,
    TextAppend,
)
from prospect.protocol.parsing import message_error
from prospect.serving.core import Core
from prospect.serving.websocket import serve_socket

_STATUS = {
    "unknown_session": 404,
    "duplicate_frame": 409,
    "sequence_gap": 409,
    "same_frame": 409,
    "fingerprint_mismatch": 409,
    "closed": 409,
    "session_exists": 409,
    "unsupported_media": 415,
    "busy": 429,
    "overloaded": 429,
}


def build_api(core: Core) -> FastAPI:
    api = FastAPI(title="Prospect")
    _add_errors(api)
    _add_sessions(api, core)

    @api.get("/healthz")
    async def healthz() -> dict[str, str]:
        await core.model()
        return {"status": "ok"}

    @api.get("/v1/model")
    async def model() -> ModelCard:
        return await core.model()

    api.add_api_websocket_route("/v1/stream", partial(serve_socket, core))
    return api


def _add_sessions(api: FastAPI, core: Core) -> None:
    path = "/v1/sessions/{session_id}"

    @api.post("/v1/sessions", status_code=201)
    async def create(update: SessionUpdate) -> SessionCreated:
        if update.resume is not None:
            raise SessionError("resume: only a stream continues a session; over HTTP its id is enough", field="resume")
        return await core.create(update.with_id(), False)

    @api.post(f"{path}/frames", openapi_extra=_FRAMES_BODY, response_model_exclude_none=True)
    async def frames(
        session_id: str, request: Request, seq: int | None = None, pts: float | None = None
    ) -> FramesResponse:
        return FramesResponse(frames=await core.decide(session_id, await _frames(request, seq, pts)))

    @api.post(f"{path}/text", status_code=202)
    async def text(session_id: str, message: TextAppend) -> dict[str, str]:
        await core.text(session_id, message.text)
        return {"status": "joins the next frame"}

    @api.get(path)
    async def view(session_id: str) -> SessionView:
        return await core.view(session_id)

    @api.patch(f"{path}/state", response_model_exclude_none=True)
    async def patch(session_id: str, message: StatePatch) -> StateUpdated:
        return StateUpdated(state=await core.patch(session_id, message.state))

    @api.delete(path)
    async def close(session_id: str) -> SessionClosed:
        return await core.close(session_id)


_OBJECT = TypeAdapter(dict[str, Any])
_FRAMES_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "anyOf": [
                        FrameAppend.model_json_schema(ref_template="#/components/schemas/{model}"),
                        FramesRequest.model_json_schema(),
                    ]
                }
            },
            "image/jpeg": {"schema": {"type": "string", "format": "binary"}},
            "image/png": {"schema": {"type": "string", "format": "binary"}},
        },
    }
}


async def _frames(request: Request, seq: int | None, pts: float | None) -> tuple[FrameAppend, ...]:
    """One raw picture, one frame as JSON, or several as {"frames": [...]}."""
    kind = request.headers.get("content-type", "application/json").partition(";")[0].strip()
    body = await request.body()
    try:
        if kind.startswith("image/"):
            return (FrameAppend(image=body, seq=seq, pts=pts),)
        if kind == "application/json":
            several = b'"frames"' in body
            return (
                FramesRequest.model_validate_json(body).frames if several else (FrameAppend.model_validate_json(body),)
            )
    except ValidationError as error:
        raise message_error(error.errors(include_url=False), body) from None
    wrong = SessionError(f"content-type: {kind!r} must be one of application/json, image/jpeg, image/png")
    wrong.code = "unsupported_media"
    raise wrong


def _add_errors(api: FastAPI) -> None:
    @api.exception_handler(ProspectError)
    async def refused(request: Request, error: ProspectError) -> JSONResponse:
        return _error(ErrorMessage.of(error), _STATUS.get(error.code, 422))

    @api.exception_handler(RequestValidationError)
    async def malformed(request: Request, error: RequestValidationError) -> JSONResponse:
        findings = [{**finding, "loc": finding["loc"][1:]} for finding in error.errors()]  # not that it is the body's
        return _error(ErrorMessage.of(message_error(findings)), 422)

    @api.exception_handler(HTTPException)
    async def unknown(request: Request, error: HTTPException) -> JSONResponse:
        text = f"{request.method} {request.url.path}: {str(error.detail).lower()}"
        return _error(ErrorMessage(code="not_found", message=text), error.status_code)


def _error(message: BaseModel, status: int) -> JSONResponse:
    return JSONResponse({"error": message.model_dump(include={"code", "message", "field"})}, status)
