"""What Serve's HTTP proxies do for this application beside their own work."""

import asyncio
from collections.abc import MutableMapping
from math import inf
from typing import Any

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

WATCHED = {"RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "1"}
"""For Serve's controller: a proxy that has died is replaced after three checks."""
WRAPPED = {"RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": f"{__name__}:middlewares"}
"""For Serve's controller, which hands it on to its proxies. They import this package."""
RECEIPTS = "prospect.receipts"
"""Extension in the scope of a request whose proxy sends receipts, and the type of those messages."""
RECEIPT_BYTES = 64 * 2**10
"""Bytes after which the gateway gets a receipt."""
TAKEN_WITHIN_S = 20.0
"""Seconds within which a client's connection must have room for the next message; after them the client counts as gone.
Less than the proxy's own server takes to miss an answer to its ping, which then waits for the client all the same."""


def middlewares() -> list[Middleware]:
    """Return what each proxy puts around Serve's own application."""
    return [Middleware(Receipts)]


def size_of(message: MutableMapping[str, Any]) -> int:
    """Bytes of what a message brings its client, as far as they matter here."""
    return len(message.get("text") or message.get("bytes") or message.get("body") or b"")


class Receipts:
    """Tells the gateway what the client's connection has taken: Serve's own queue between the two has no bound.

    `FlowControl` waits for it there. Messages to a client that has left, or reads nothing, are dropped: Serve's proxy
    prints two stack traces for each stream otherwise.

    Args:
        app: what is wrapped.
        sends: whether there are receipts; where nothing lies between server and gateway, `send` itself waits.
    """

    def __init__(self, app: ASGIApp, sends: bool = True) -> None:
        self._app, self._sends = app, sends

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            return await self._app(scope, receive, send)
        connection = _Connection(scope["type"], receive, send)
        if self._sends:
            scope = {**scope, "extensions": {**scope.get("extensions", {}), RECEIPTS: {}}}
        else:
            connection.receipt_bytes = inf
        try:
            await self._app(scope, connection.receive, connection.send)
        finally:
            connection.close()


class _Connection:
    def __init__(self, kind: str, receive: Receive, send: Send) -> None:
        self.receipt_bytes: float = RECEIPT_BYTES
        self._receive, self._send = receive, send
        self._farewell: Message = {"type": f"{kind}.disconnect"} | ({"code": 1006} if kind == "websocket" else {})
        self._receiving: asyncio.Future[Message] | None = None
        self._taken = self._told = 0
        self._news: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when there is a receipt, or the client counts as gone."""
        self._is_gone = False

    async def receive(self) -> Message:
        """The client's next message, or a receipt."""
        if self._receiving is None:
            self._receiving = asyncio.ensure_future(self._receive())
        await asyncio.wait((self._receiving, self._news), return_when=asyncio.FIRST_COMPLETED)
        if self._news.done():
            self._news = asyncio.get_running_loop().create_future()
            return self._farewell if self._is_gone else {"type": RECEIPTS, "taken": self._taken}
        message, self._receiving = self._receiving.result(), None
        self._is_gone = self._is_gone or message["type"] == "websocket.disconnect"
        return message

    async def send(self, message: Message) -> None:
        """Pass a message on, unless the client is gone."""
        if self._is_gone:
            return
        try:
            async with asyncio.timeout(TAKEN_WITHIN_S):
                await self._send(message)
        except OSError:  # the server's word for a client that has left; a timeout is one too
            self._is_gone = True
            return self._tell()
        self._taken += size_of(message)
        if self._taken - self._told >= self.receipt_bytes:
            self._told = self._taken
            self._tell()

    def _tell(self) -> None:
        if not self._news.done():
            self._news.set_result(None)

    def close(self) -> None:
        if self._receiving is not None:
            self._receiving.cancel()
