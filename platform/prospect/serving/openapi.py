"""The description of the HTTP interface, with the stream's messages among its schemas."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from prospect.protocol.messages import CLIENT_MESSAGES, SERVER_MESSAGES, FramesRequest
from prospect.serving.access.access import OPEN_PATHS

_TEMPLATE = "#/components/schemas/{model}"
_MEANINGS = {
    401: "An API key is missing, unknown or revoked.",
    403: "This web page, or this name of the server, is not allowed.",
    404: "The session is closed, has expired or never existed.",
    409: "It does not fit the session as it is.",
    413: "The body is too large.",
    415: "The content type is unknown.",
    422: "A field is missing, unknown or wrong.",
    429: "The server is full, or the key has what it may have; `Retry-After` says when to try again.",
    503: "No engine answers now, or the session store does not; `Retry-After` says when to try again.",
}
_STEPS = ["boil water", "pour water", "add milk"]
_PICTURE = "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAIAAABLbSncAAAAFUlEQVR42mOMqpjGgA0wMeAAg1MCAB1LAXh3sACQAAAAAElFTkSuQmCC"
"""PNG of 8 x 8 pixels."""
_EXAMPLES: dict[tuple[str, str], dict[str, Any]] = {
    ("/v1/sessions", "post"): {"goal": "Make tea", "steps": _STEPS, "thresholds": {"speak": 0.6, "update": 0.5}},
    ("/v1/sessions/{session_id}/frames", "post"): {"image": _PICTURE},
    ("/v1/sessions/{session_id}/text", "post"): {"text": "Which cup shall I take?", "id": "5b1f"},
    ("/v1/sessions/{session_id}/state", "patch"): {"state": {"S1": "completed", "S2": "in_progress"}},
}
"""Bodies by path and method."""


class Refusal(BaseModel):
    """Why a request was refused."""

    code: str
    message: str
    """One sentence that names the field."""
    field: str | None


class Refused(BaseModel):
    """The body of every answer that is an error."""

    error: Refusal


def refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """What an operation may be refused with, beside 401, 403, 422 and 429, with which every one may."""
    every = {401, 403, 422, 429, *statuses}
    return {status: {"model": Refused, "description": _MEANINGS[status]} for status in sorted(every)}


def describe(api: FastAPI, needs_key: bool) -> dict[str, Any]:
    """The whole description, made once.

    Args:
        api: the application.
        needs_key: whether its clients need a key.
    """
    if api.openapi_schema is None:
        whole = get_openapi(title=api.title, version="1", routes=api.routes, description=_ABOUT)
        _, messages = models_json_schema(
            [(model, "validation") for model in (*CLIENT_MESSAGES, FramesRequest)]
            + [(model, "serialization") for model in SERVER_MESSAGES],
            ref_template=_TEMPLATE,
        )
        for (path, method), example in _EXAMPLES.items():
            whole["paths"][path][method]["requestBody"]["content"]["application/json"]["example"] = example
        whole["components"]["schemas"] = messages["$defs"] | whole["components"]["schemas"]
        whole["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        whole["security"] = [{"key": []}] if needs_key else [{}, {"key": []}]
        for path in OPEN_PATHS & set(whole["paths"]):
            whole["paths"][path]["get"]["security"] = []
            del whole["paths"][path]["get"]["responses"]["401"]
        whole["x-stream"] = {
            "paths": ["/v1/stream", "/v1/sessions/{session_id}/stream"],
            "client": [_TEMPLATE.format(model=model.__name__) for model in CLIENT_MESSAGES],
            "server": [_TEMPLATE.format(model=model.__name__) for model in SERVER_MESSAGES],
        }
        api.openapi_schema = whole
    return api.openapi_schema


_ABOUT = (
    "Live sessions over HTTP. `x-stream` names the messages of the WebSocket, whose schemas are among the components."
)
