"""`GET /v1/sessions/ID/events`: server-sent events for listeners who only watch (docs/protocol.md)."""

from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Annotated, Any

from fastapi import FastAPI, Header, Response
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from prospect.protocol.client_messages import MAX_SEQ
from prospect.serving.access.access import Access
from prospect.serving.access.caller import Asking, Session
from prospect.serving.host import SessionHost
from prospect.serving.openapi import refusals
from prospect.serving.watching import Said, Watcher, watch

EVENTS = "/events"
"""End of the path: such a request is answered by the gateway that it reaches, which listens to the session's owner."""
ALIVE_EVERY_S = 15.0
"""Seconds of silence after which a comment is sent: proxies cut connections on which nothing comes."""
AGAIN_AFTER_MS = 1000
"""Milliseconds after which a browser whose connection broke asks again."""

LastEventId = Annotated[
    int | None, Header(ge=0, le=MAX_SEQ, description="Number of the last durable message that the listener has.")
]


class EventStream(StreamingResponse):
    """What a listener reads, until it is over or the listener goes away."""

    media_type = "text/event-stream"

    def __init__(self, watcher: Watcher, may_hear: Callable[[], Awaitable[bool]]) -> None:
        self._watcher = watcher
        super().__init__(_written(watcher, may_hear), headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._watcher.close()


def add_events(api: FastAPI, host: SessionHost, access: Access) -> None:
    """Add the operation."""

    @api.get(
        f"/v1/sessions/{{session_id}}{EVENTS}",
        status_code=200,
        response_class=EventStream,
        responses={
            200: {"content": {EventStream.media_type: {"schema": _ONE_EVENT}}, "description": _ABOUT},
            204: {"description": "The session is closed, and the listener has all of it."},
            **{status: _as_json(refusal) for status, refusal in refusals(404, 503).items()},
        },
    )
    async def events(session_id: Session, caller: Asking, last_event_id: LastEventId = None) -> Response:
        """What the session says, for listeners who only watch."""
        watcher = await watch(host, session_id, last_event_id)
        if watcher.is_done:
            watcher.close()
            return Response(status_code=204)
        return EventStream(watcher, partial(access.is_good, caller))


def _as_json(refusal: dict[str, Any]) -> dict[str, Any]:
    """A refusal as the description has it, where the answer itself is no JSON."""
    schema = {"$ref": f"#/components/schemas/{refusal['model'].__name__}"}
    return {"description": refusal["description"], "content": {"application/json": {"schema": schema}}}


async def _written(watcher: Watcher, may_hear: Callable[[], Awaitable[bool]]) -> AsyncIterator[str]:
    """Yield the events for as long as its listener may hear them."""
    yield f"retry: {AGAIN_AFTER_MS}\n\n"
    while not watcher.is_done:
        said = await watcher.take(ALIVE_EVERY_S)
        if not await may_hear():
            return
        if said is not None:
            yield _event(said)
        elif not watcher.is_done:
            yield ":\n\n"


def _event(said: Said) -> str:
    number, content = said
    return f"data: {content}\n\n" if number is None else f"id: {number}\ndata: {content}\n\n"


_ONE_EVENT = {
    "type": "object",
    "properties": {"data": {"type": "string", "contentMediaType": "application/json"}, "id": {"type": "string"}},
    "required": ["data"],
}
_ABOUT = (
    "The server's messages in `data`, one an event; the `id` of a durable one is its `event`. "
    "`Last-Event-ID` continues behind it; without it the stream begins with what is kept."
)
