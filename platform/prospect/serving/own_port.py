"""A port that a gateway listens on itself: what its clients send does not pass through Serve's proxy."""

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import uvicorn
from starlette.types import ASGIApp

from prospect.serving.proxy import Receipts
from prospect.serving.requirements import cannot_listen

log = logging.getLogger(__name__)

LAST_WORDS_WITHIN_S = 3.0
"""Seconds that clients have to take a gateway's farewell."""
LOOKED_EVERY_S = 0.05


class OwnPort:
    """Belongs to one event loop.

    Gateways of one node share the port: the kernel gives each new connection to one of them, and none to one that is
    gone or on its way out.

    Args:
        host: address to listen on.
        port: of this address.

    Raises:
        ConfigError: another program listens there.
    """

    def __init__(self, host: str, port: int) -> None:
        self._socket = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        try:
            self._socket.bind((host, port))
        except OSError as error:
            self._socket.close()
            raise cannot_listen(host, port, "direct_port", error) from error
        self._server: _Server | None = None
        self._serving: asyncio.Task[None] | None = None

    def open(self, app: ASGIApp) -> None:
        """Begin to answer."""
        # Pictures and embeddings as base64 shrink by a quarter at most, and cost more than the network they save.
        config = uvicorn.Config(
            Receipts(app, sends=False),  # uvicorn itself would wait for a client that does not read, without end
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            ws_per_message_deflate=False,
        )
        self._server = _Server(config)
        self._serving = asyncio.create_task(self._server.serve([self._socket]))

    def check_health(self) -> None:
        """Raise the error that ended it, if one did."""
        if self._serving is not None and self._serving.done():
            self._serving.result()
            raise RuntimeError("nobody listens on serving.direct_port any more")

    async def end(self, say_farewell: Callable[[], Awaitable[None]]) -> None:
        """End, once the clients have taken what `say_farewell` tells them, or have not for too long.

        New connections go to the other gateways from now on.
        """
        if self._server is None or self._serving is None:
            self._socket.close()
            await say_farewell()
            return
        for each in getattr(self._server, "servers", ()):  # none where it has not begun
            each.close()
        await say_farewell()
        tasks = self._server.server_state.tasks
        try:
            async with asyncio.timeout(LAST_WORDS_WITHIN_S):
                while tasks:  # noqa: ASYNC110  # uvicorn's own set
                    await asyncio.sleep(LOOKED_EVERY_S)
        except TimeoutError:
            log.warning("%d clients have not taken their last words", len(tasks))
        self._server.should_exit = self._server.force_exit = True
        await self._serving


class _Server(uvicorn.Server):
    """Leaves the signals to Ray."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
