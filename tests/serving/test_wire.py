"""Connections between processes."""

import asyncio
import gc
from typing import Any

from prospect.serving.wire import Connection, connect, listen

SECRET = "s" * 32


class Echo:
    async def answer(self, connection: Connection, operation: str, arguments: list[Any]) -> Any:
        return arguments

    def notice(self, connection: Connection, operation: str, arguments: list[Any]) -> None: ...

    def lost(self, connection: Connection) -> None: ...


def test_a_connection_that_nobody_refers_to_ends_in_order():
    """Collected while its task waits, it would be an error of the event loop."""

    async def story() -> list[dict[str, Any]]:
        told: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
        server, address = await listen("127.0.0.1", SECRET, Echo)
        for number in range(3):
            connection = await connect(address, SECRET, Echo())
            assert await connection.call("echo", number, within=2) == [number]
            connection.close()
            del connection
            gc.collect()
            await asyncio.sleep(0.01)
        server.close()
        return told

    assert asyncio.run(story()) == []
