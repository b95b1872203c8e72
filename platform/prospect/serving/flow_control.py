"""What a client does not read waits in the gateway, where it is bounded, and not in Serve's proxy, where it is not."""

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from prospect.serving.proxy import RECEIPT_BYTES, RECEIPTS, size_of

AHEAD_BYTES = 4 * RECEIPT_BYTES
"""Bytes that are handed to the proxy of one connection before its client has taken them."""


class FlowControl:
    """Lets `send` wait for the proxy's receipts; it fails once the client is gone.

    A proxy without this package sends none, and is handed everything at once.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if RECEIPTS not in scope.get("extensions", {}):
            return await self._app(scope, receive, send)
        flow = _Flow(receive, send)
        reading = asyncio.create_task(flow.read())
        try:
            await self._app(scope, flow.receive, flow.send)
        finally:
            reading.cancel()


class _Flow:
    """One connection; receipts come among the client's messages."""

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive, self._send = receive, send
        self._received: asyncio.Queue[Message | Exception] = asyncio.Queue()
        self._handed = self._taken = 0
        self._told = asyncio.Event()
        self._is_gone = False

    async def read(self) -> None:
        """Take all that comes, as Serve's own queue does, until the client is gone."""
        while not self._is_gone:
            try:
                message: Message | Exception = await self._receive()
            except Exception as error:  # the proxy has died
                message = error
            if isinstance(message, Exception) or _is_farewell(message):
                self._is_gone = True
            elif message["type"] == RECEIPTS:
                self._taken = message["taken"]
                self._told.set()
                continue
            self._received.put_nowait(message)
        self._told.set()

    async def receive(self) -> Message:
        """The client's next message; the last one again and again."""
        message = await self._received.get()
        if isinstance(message, Exception) or _is_farewell(message):
            self._received.put_nowait(message)
        if isinstance(message, Exception):
            raise message
        return message

    async def send(self, message: Message) -> None:
        """Hand a message over once there is room for it.

        Raises:
            OSError: the client is gone.
        """
        while self._handed - self._taken >= AHEAD_BYTES:
            if self._is_gone:
                raise ConnectionResetError("the client has left, or reads nothing")
            self._told.clear()
            await self._told.wait()
        self._handed += size_of(message)
        await self._send(message)


def _is_farewell(message: Message) -> bool:
    return message["type"] in ("http.disconnect", "websocket.disconnect")
