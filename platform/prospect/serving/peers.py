"""What gateways ask of each other: whether one has a session, to let it go, what it says, and to answer a request."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Protocol

from prospect.errors import ProspectError, session_error
from prospect.serving import watching
from prospect.serving.wire import Connection, LostConnectionError, connect

WITHIN_S = 10.0
"""Seconds within which another gateway answers, or counts as dead."""

Answer = tuple[int, dict[str, str], bytes]
"""Status, headers and body."""
Respond = Callable[[str | None, str, str, dict[str, str], bytes], Awaitable[Answer]]
"""(id of the caller's key, method, path with query, headers, body) -> answer."""


class Gateway(watching.Gateway, Protocol):
    """What other gateways may ask of one."""

    respond: Respond

    def owns(self, session_id: str) -> bool:
        """Whether it has a session."""

    async def release(self, session_id: str) -> None:
        """Let another gateway have a session."""


class GatewayPeer:
    """Answers other gateways."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._watcher: watching.Watcher | None = None
        self._telling: asyncio.Task[None] | None = None

    async def answer(self, connection: Connection, operation: str, arguments: list[Any]) -> Any:
        """Answer a question about a session."""
        match operation:
            case "owns":
                return self._gateway.owns(arguments[0])
            case "release":
                return await self._gateway.release(arguments[0])
            case "respond":
                return await self._gateway.respond(*arguments)
            case "watch":
                self._watcher = watching.watch_here(self._gateway, *arguments)
                self._telling = asyncio.create_task(watching.retell(self._watcher, connection))
                return None
        raise session_error("internal", f"operation {operation!r} is unknown")

    def notice(self, connection: Connection, operation: str, arguments: list[Any]) -> None:
        """Ignore: gateways tell each other nothing."""

    def lost(self, connection: Connection) -> None:
        """Tell it no more of a session; each question has a connection of its own."""
        if self._watcher is not None:
            self._watcher.close()


async def owns(address: str, secret: str, session_id: str) -> bool:
    """Whether the gateway at an address is alive and has a session."""
    try:
        return bool(await _ask(address, secret, "owns", session_id))
    except LostConnectionError:
        return False


async def release_elsewhere(address: str, secret: str, session_id: str) -> None:
    """Have the gateway at an address let a session go, unless it is dead."""
    with suppress(LostConnectionError, ProspectError):
        await _ask(address, secret, "release", session_id)


async def respond_elsewhere(address: str, secret: str, *request: Any) -> Answer:
    """Have the gateway at an address answer a request (`Respond`).

    Raises:
        SessionError: `unavailable`: it has just died.
    """
    try:
        status, headers, body = await _ask(address, secret, "respond", *request)
    except LostConnectionError as error:
        raise session_error("unavailable", "the session's gateway does not answer; try again") from error
    return status, headers, body


async def _ask(address: str, secret: str, operation: str, *arguments: Any) -> Any:
    connection = await connect(address, secret, _Asking())
    try:
        return await connection.call(operation, *arguments, within=WITHIN_S)
    finally:
        connection.close()


class _Asking:
    """The side that asks."""

    async def answer(self, connection: Connection, operation: str, arguments: list[Any]) -> Any:
        raise session_error("internal", f"operation {operation!r} is unknown")

    def notice(self, connection: Connection, operation: str, arguments: list[Any]) -> None: ...

    def lost(self, connection: Connection) -> None: ...
