"""Connections between processes."""

import asyncio
import gc
from typing import Any

import pytest

from prospect.serving.wire import Connection, connect, listen

SECRET = "s" * 32


class Echo:
    def __init__(self) -> None:
        self.noticed: list[Any] = []

    async def answer(self, connection: Connection, operation: str, arguments: list[Any]) -> Any:
        return arguments

    def notice(self, connection: Connection, operation: str, arguments: list[Any]) -> None:
        self.noticed += arguments

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


def test_messages_come_whole_and_in_order_however_they_are_cut():
    """Small ones of one turn travel together, a large one in many pieces; what was sent before an end arrives."""

    async def story() -> tuple[list[Any], list[Any]]:
        echo = Echo()
        server, address = await listen("127.0.0.1", SECRET, lambda: echo)
        connection = await connect(address, SECRET, Echo())
        for number in range(100):
            connection.notify("note", number, b"x" * (2_000_000 if number == 50 else number))
        answer = await connection.call("echo", "after them", within=5)
        connection.notify("note", "last", b"")
        connection.close()
        await asyncio.sleep(0.05)
        server.close()
        return echo.noticed, answer

    noticed, answer = asyncio.run(story())
    assert noticed[::2] == [*range(100), "last"]
    assert [len(each) for each in noticed[1::2]] == [2_000_000 if at == 50 else at for at in range(100)] + [0]
    assert answer == ["after them"]


@pytest.mark.parametrize("said", [b"t" * 32, b"s" * 31, b"s" * 32 + b"\xff" * 8])
def test_who_does_not_know_the_secret_or_says_nonsense_is_cut_off(said: bytes, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("prospect.serving.wire.GREETING_WITHIN_S", 0.2)

    async def story() -> bytes:
        server, address = await listen("127.0.0.1", SECRET, Echo)
        reader, writer = await asyncio.open_connection(*address.split(":"))
        writer.write(said)
        try:
            return await asyncio.wait_for(reader.read(), 5)
        except ConnectionResetError:
            return b""
        finally:
            writer.close()
            server.close()

    assert asyncio.run(story()) == b""
