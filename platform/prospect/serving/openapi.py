"""The description of the HTTP interface, with the stream's messages among its schemas."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from prospect.protocol.messages import CLIENT_MESSAGES, SERVER_MESSAGES, FramesRequest

_TEMPLATE = "#/components/schemas/{model}"
_MEANINGS = {
    404: "The session is closed, has expired or never existed.",
    409: "It does not fit the session as it is.",
    413: "The body is too large.",
    415: "The content type is unknown.",
    422: "A field is missing, unknown or wrong.",
    429: "The server is full; `Retry-After` says when to try again.",
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
    """What an operation may be refused with, beside 422, which every one may."""
    return {status: {"model": Refused, "description": _MEANINGS[status]} for status in sorted({422, *statuses})}


def describe(api: FastAPI) -> dict[str, Any]:
    """The whole description, made once."""
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
