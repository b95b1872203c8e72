"""ASGI: refuses what `Access` does not let in, and counts what each key sends."""

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from prospect.errors import SessionError
from prospect.protocol.messages import UNAUTHORIZED, ErrorMessage
from prospect.serving.access.access import Access, offered, rate_limited
from prospect.serving.access.caller import CALLER, Caller
from prospect.serving.access.keys import SUBPROTOCOL
from prospect.serving.answers import refusal

POLICY_VIOLATION, TRY_AGAIN = 1008, 1013
"""Close codes of RFC 6455 and its registry."""


class Guard:
    """Stands before everything else that answers a client. What another gateway passes on comes with its caller."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app, self._access = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket") or CALLER in scope:
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        try:
            self._access.check_origin(headers)
            caller = await self._access.caller(scope["path"], headers)
            if wait := caller.spend(1, 0):
                raise rate_limited(wait)
        except SessionError as error:
            await _refuse(error, scope, receive, send)
            return
        counted = _counted(receive, caller) if scope["type"] == "http" else receive
        await self._app({**scope, CALLER: caller}, counted, send)


def _counted(receive: Receive, caller: Caller) -> Receive:
    """Count a body as it comes. One that is begun is read to its end: what it has too much delays the next."""

    async def counting() -> Message:
        message = await receive()
        caller.charge(0, len(message.get("body", b"")))
        return message

    return counting


async def _refuse(error: SessionError, scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "http":
        await refusal(error)(scope, receive, send)
    elif error.code == "forbidden":  # not a word to a page that may not ask; the server answers 403
        await send({"type": "websocket.close", "code": POLICY_VIOLATION})
    else:  # a browser tells its page nothing of a status, but what comes on an open socket
        await send({"type": "websocket.accept", "subprotocol": subprotocol_of(scope)})
        message = ErrorMessage.of(error).model_dump_json(exclude_none=True)
        await send({"type": "websocket.send", "text": message})
        await send({"type": "websocket.close", "code": UNAUTHORIZED if error.code == "unauthorized" else TRY_AGAIN})


def subprotocol_of(scope: Scope) -> str | None:
    """The subprotocol to select: ours, if it is offered."""
    return SUBPROTOCOL if SUBPROTOCOL in offered(Headers(scope=scope)) else None
