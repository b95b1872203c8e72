"""Pictures are encoded in other processes, which come and go."""

import asyncio
from collections.abc import Collection
from typing import Any

import numpy as np
import pytest

from prospect.errors import ProspectError
from prospect.serving import encoders
from prospect.serving.encoders import RemoteEncoder
from prospect.serving.replay import pack
from prospect.serving.wire import Connection, listen

SECRET = "s" * 32


class Worker:
    """Answers with its name, unless it dies of the picture."""

    def __init__(self, name: int) -> None:
        self.name, self.pictures = name, 0

    async def answer(self, connection: Connection, operation: str, arguments: list[Any]) -> Any:
        self.pictures += 1
        if arguments[0] == b"poison":
            connection.close()
        return pack([np.full((1, 2), self.name, np.float16)])

    def notice(self, connection: Connection, operation: str, arguments: list[Any]) -> None: ...

    def lost(self, connection: Connection) -> None: ...


class Known:
    """A directory that tests write."""

    def __init__(self) -> None:
        self.there: list[str] = []

    async def addresses(self) -> Collection[str]:
        return self.there

    async def add(self, name: int) -> Worker:
        worker = Worker(name)
        _, address = await listen("127.0.0.1", SECRET, lambda: worker)
        self.there.append(address)
        return worker


def test_pictures_go_to_one_encoder_after_the_other():
    async def story() -> list[float]:
        known = Known()
        for name in (1, 2):
            await known.add(name)
        encoder = RemoteEncoder(known, SECRET)
        return [float((await encoder.encode(b"picture"))[0, 0]) for _ in range(4)]

    assert sorted(asyncio.run(story())) == [1, 1, 2, 2]


def test_a_picture_waits_while_encoders_are_replaced(monkeypatch):
    async def story() -> float:
        known = Known()
        encoder = RemoteEncoder(known, SECRET)
        waiting = asyncio.create_task(encoder.encode(b"picture"))
        await asyncio.sleep(0.3)
        await known.add(1)
        return float((await waiting)[0, 0])

    assert asyncio.run(story()) == 1


def test_without_any_encoder_it_is_refused(monkeypatch):
    monkeypatch.setattr(encoders, "FOUND_WITHIN_S", 0.2)
    with pytest.raises(ProspectError, match=r"^image: no encoder answers") as refused:
        asyncio.run(RemoteEncoder(Known(), SECRET).encode(b"picture"))
    assert refused.value.code == "unavailable"


def test_a_picture_that_kills_is_given_up():
    async def story() -> int:
        known = Known()
        worker = await known.add(1)
        with pytest.raises(ProspectError) as refused:
            await RemoteEncoder(known, SECRET).encode(b"poison")
        assert refused.value.code == "unavailable"
        return worker.pictures

    assert asyncio.run(story()) == encoders.TRIES
