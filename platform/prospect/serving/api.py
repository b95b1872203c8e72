"""HTTP and WebSocket over a `SessionHost` (docs/protocol.md). No Ray: a test runs it in its own process."""

import asyncio
import logging
import re
from functools import partial
from typing import Annotated, Any

import httpx
from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import Discriminator, Tag, TypeAdapter, ValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Match, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from prospect.errors import ProspectError, SessionError, session_error
from prospect.protocol.client_messages import MAX_PTS, MAX_SEQ
from prospect.protocol.messages import (
    MAX_MESSAGE_BYTES,
    ErrorMessage,
    FrameAppend,
    FramesRequest,
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
from prospect.protocol.parsing import message_error
from prospect.serving.access.access import Access
from prospect.serving.access.caller import CALLER, Asking, Caller, Session, caller_of
from prospect.serving.access.guard import Guard
from prospect.serving.answers import error_answer, refusal
from prospect.serving.event_stream import EVENTS, add_events
from prospect.serving.flow_control import FlowControl
from prospect.serving.host import SessionHost
from prospect.serving.openapi import describe, refusals
from prospect.serving.page import add_page
from prospect.serving.peers import Answer, respond_elsewhere
from prospect.serving.websocket import serve_socket

log = logging.getLogger(__name__)

HEALTHY_WITHIN_S = 5.0
"""Seconds within which an engine's thread must come to a question about its health."""
PICTURES = ("image/jpeg", "image/png", "image/webp")

_BODILESS = ("GET", "HEAD", "DELETE")
_OF_A_SESSION = re.compile(r"/v1/sessions/([^/]+)")
_CODES = {404: "not_found", 405: "method_not_allowed", 413: "too_large"}
"""Of what the framework refuses by itself."""


Seq = Annotated[int | None, Query(ge=0, le=MAX_SEQ, description="Of a raw picture, as in `FrameAppend`.")]
Pts = Annotated[float | None, Query(ge=0, le=MAX_PTS, description="Of a raw picture, as in `FrameAppend`.")]


def build_api(host: SessionHost, access: Access | None = None) -> FastAPI:
    """Make the ASGI application of a gateway.

    Args:
        host: its sessions.
        access: what it lets in; None: what comes over loopback, without keys.
    """
    access = access or Access()
    api = FastAPI(title="Prospect", docs_url=None, redoc_url=None)
    api.state.monitor = host.monitor
    api.add_middleware(ToOwner, host=host)
    api.add_middleware(BoundedBody)
    api.add_middleware(Guard, access=access)
    if access.origins:  # around the guard: a browser asks whether it may send a key without sending one
        api.add_middleware(
            CORSMiddleware, allow_origins=access.origins, allow_methods=("*",), expose_headers=("Retry-After",),
            allow_headers=("Authorization", "Content-Type"),
        )  # fmt: skip
    api.add_middleware(FlowControl)
    _add_errors(api)
    _add_sessions(api, host)
    add_events(api, host, access)
    add_page(api)
    host.respond = partial(_respond, api)

    @api.get("/healthz", responses=refusals(503))
    async def healthz() -> dict[str, str]:
        """Whether an engine answers, and its thread too: `ok`, or `degraded` while the session store is away."""
        return {"status": await _healthy(host)}

    @api.get("/readyz", responses=refusals(429, 503))
    async def readyz() -> dict[str, str]:
        """Whether a new session would be taken: an engine has a place, and the session store is there."""
        await (await host.overview()).ready()
        return {"status": "ready"}

    @api.get("/v1/status", responses=refusals(503))
    async def status() -> ServerStatus:
        """How the deployment is; 200 also where its health is not `ok`."""
        return await (await host.overview()).status()

    @api.get("/v1/model", responses=refusals(503))
    async def model() -> ModelCard:
        return await host.model()

    for path in ("/v1/stream", "/v1/sessions/{session_id}/stream"):
        api.add_api_websocket_route(path, partial(serve_socket, host, access))
    api.openapi = partial(describe, api, access.needs_key)  # type: ignore[method-assign]
    return api


async def _health(host: SessionHost) -> str:
    return await (await host.overview()).health()


async def _healthy(host: SessionHost) -> str:
    try:
        return await asyncio.wait_for(_health(host), HEALTHY_WITHIN_S)
    except Exception as error:  # a time-out, an engine whose loop has ended, or a replica that is gone
        message = f"no engine has answered within {HEALTHY_WITHIN_S:g} seconds; try again"
        raise session_error("unavailable", message) from error


def _add_sessions(api: FastAPI, host: SessionHost) -> None:
    path = "/v1/sessions/{session_id}"

    @api.post("/v1/sessions", status_code=201, responses=refusals(409, 413, 429, 503))
    async def create(update: SessionUpdate, caller: Asking) -> SessionCreated:
        if update.resume is not None:
            raise SessionError("resume: only a stream continues a session; over HTTP its id is enough", field="resume")
        return await host.create(update.completed(), False, caller.key_id)

    @api.post(
        f"{path}/frames",
        openapi_extra=_FRAMES_BODY,
        response_model_exclude_none=True,
        responses=refusals(404, 409, 413, 415, 429, 503),
    )
    async def frames(
        session: Session, caller: Asking, request: Request, seq: Seq = None, pts: Pts = None
    ) -> FramesResponse:
        sent = await _frames(request, seq, pts)
        caller.charge(len(sent) - 1, 0)  # the request counts as one
        return FramesResponse(frames=await host.decide(session, sent))

    @api.post(f"{path}/text", status_code=202, responses=refusals(404, 409, 413, 503))
    async def text(session: Session, message: TextAppend) -> dict[str, str]:
        await host.text(session, message)
        return {"status": "joins the next frame"}

    @api.get(path, responses=refusals(404, 503))
    async def view(session: Session) -> SessionView:
        return await host.view(session)

    @api.get(f"{path}/transcript", responses=refusals(404, 409, 503))
    async def transcript(session: Session) -> Transcript:
        """What was said and what changed, by frame."""
        return await host.transcript(session)

    @api.get(f"{path}/record", responses=refusals(404, 409, 503))
    async def record(session: Session) -> dict[str, Any]:
        """The session as a canonical record (docs/data.md), to train and score on; without its frames."""
        return await host.record(session)

    @api.patch(f"{path}/state", response_model_exclude_none=True, responses=refusals(404, 409, 413, 503))
    async def patch(session: Session, message: StatePatch) -> StateUpdated:
        return StateUpdated(state=await host.patch(session, message.state))

    @api.delete(path, response_model_exclude_none=True, responses=refusals(404, 503))
    async def close(session: Session) -> SessionClosed:
        return await host.close(session)


def _kind_of_body(value: Any) -> str:
    return "several" if isinstance(value, dict) and "frames" in value else "one"


_BODY: TypeAdapter[FrameAppend | FramesRequest] = TypeAdapter(
    Annotated[
        Annotated[FrameAppend, Tag("one")] | Annotated[FramesRequest, Tag("several")], Discriminator(_kind_of_body)
    ]
)
_REFERENCE = "#/components/schemas/"
_FRAMES_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {"anyOf": [{"$ref": f"{_REFERENCE}FrameAppend"}, {"$ref": f"{_REFERENCE}FramesRequest"}]}
            },
            **{kind: {"schema": {"type": "string", "format": "binary"}} for kind in PICTURES},
        },
    }
}


async def _frames(request: Request, seq: int | None, pts: float | None) -> tuple[FrameAppend, ...]:
    """One raw picture, one frame as JSON, or several as {"frames": [...]}."""
    kind = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if kind not in (*PICTURES, "application/json"):
        allowed = ", ".join(("application/json", *PICTURES))
        raise session_error("unsupported_media", f"content-type: {kind!r} must be one of {allowed}", "content-type")
    body = await request.body()
    try:
        if kind in PICTURES:
            return (FrameAppend(image=body, seq=seq, pts=pts),)
        parsed = _BODY.validate_json(body)
    except ValidationError as error:
        raise message_error(error.errors(include_url=False), None if kind in PICTURES else body) from None
    return parsed.frames if isinstance(parsed, FramesRequest) else (parsed,)


def _add_errors(api: FastAPI) -> None:
    @api.exception_handler(ProspectError)
    async def refused(request: Request, error: ProspectError) -> JSONResponse:
        return refusal(error)

    @api.exception_handler(ValidationError)
    async def wrong(request: Request, error: ValidationError) -> JSONResponse:
        return refusal(message_error(error.errors(include_url=False)))

    @api.exception_handler(RequestValidationError)
    async def malformed(request: Request, error: RequestValidationError) -> JSONResponse:
        findings = [{**finding, "loc": finding["loc"][1:]} for finding in error.errors()]  # not that it is the body's
        return refusal(message_error(findings))

    @api.exception_handler(HTTPException)
    async def unknown(request: Request, error: HTTPException) -> JSONResponse:
        text = f"{request.method} {request.url.path}: {str(error.detail).lower()}"
        status = 422 if error.status_code == 400 else error.status_code  # JSON that is nested too deeply
        answer = error_answer(ErrorMessage(code=_CODES.get(status, "invalid_message"), message=text), status)
        if status == 405:
            answer.headers["Allow"] = ", ".join(_methods(api, request))
        return answer

    @api.exception_handler(Exception)
    async def defect(request: Request, error: Exception) -> JSONResponse:
        return error_answer(ErrorMessage.defect())


def _methods(api: FastAPI, request: Request) -> list[str]:
    """The methods of all operations at a request's path."""
    routes = [route for route in api.routes if isinstance(route, Route)]
    there = [route for route in routes if route.matches(request.scope)[0] != Match.NONE]
    return sorted({method for route in there for method in route.methods or ()})


class BoundedBody:
    """Ends a request whose body is larger than a message may be, before the rest of it is read."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        read = 0

        async def counted() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > MAX_MESSAGE_BYTES:
                raise HTTPException(413, f"the body has more than {MAX_MESSAGE_BYTES:,} bytes")
            return message

        await self._app(scope, counted if scope["type"] == "http" else receive, send)


class ToOwner:
    """Has a request about a session answered by the gateway that owns it."""

    def __init__(self, app: ASGIApp, host: SessionHost) -> None:
        self._app, self._host = app, host

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        elsewhere = scope["type"] == "http" and not scope["path"].endswith(EVENTS)
        named = _OF_A_SESSION.match(scope["path"]) if elsewhere else None
        try:
            owner = await self._host.owner_of(scope[CALLER].session(named[1])) if named else None
            answer = None if owner is None else await self._ask(owner, Request(scope, receive))
        except ProspectError as error:
            answer = refusal(error)
        except HTTPException as error:  # the body is too large
            answer = error_answer(ErrorMessage(code=_CODES[error.status_code], message=error.detail), error.status_code)
        await (self._app if answer is None else answer)(scope, receive, send)

    async def _ask(self, owner: str, request: Request) -> Response:
        headers = {name: request.headers[name] for name in ("content-type",) if name in request.headers}
        path = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        body = b"" if request.method in _BODILESS else await request.body()
        status, headers, content = await respond_elsewhere(
            owner, self._host.secret, caller_of(request).key_id, request.method, path, headers, body
        )
        return Response(content, status, headers)


async def _respond(
    api: FastAPI, key_id: str | None, method: str, path: str, headers: dict[str, str], body: bytes
) -> Answer:
    """Answer a request that another gateway has passed on, which has looked who asks."""

    async def asked(scope: Scope, receive: Receive, send: Send) -> None:
        await api({**scope, CALLER: Caller(key_id)}, receive, send)

    transport = httpx.ASGITransport(asked, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
        answer = await client.request(method, path, headers=headers, content=body)
    kept = {name: answer.headers[name] for name in ("content-type", "retry-after") if name in answer.headers}
    return answer.status_code, kept, answer.content
