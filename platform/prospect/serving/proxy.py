"""What Serve's HTTP proxies do for this application beside their own work."""

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

WATCHED = {"RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "1"}
"""For Serve's controller: a proxy that has died is replaced after three checks."""
WRAPPED = {"RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": f"{__name__}:middlewares"}
"""For Serve's controller, which hands it on to its proxies. They import this package."""


def middlewares() -> list[Middleware]:
    """Return what each proxy puts around Serve's own application."""
    return [Middleware(QuietSockets)]


class QuietSockets:
    """Drops messages to a WebSocket whose client has left: Serve's proxy prints two stack traces for each stream."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_gone = False

        async def heard() -> Message:
            nonlocal is_gone
            message = await receive()
            is_gone = is_gone or message["type"] == "websocket.disconnect"
            return message

        async def said(message: Message) -> None:
            nonlocal is_gone
            if is_gone:
                return
            try:
                await send(message)
            except OSError:  # the server's word for a client that has left
                is_gone = True

        if scope["type"] == "websocket":
            await self._app(scope, heard, said)
        else:
            await self._app(scope, receive, send)
