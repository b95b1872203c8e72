"""Where a gateway has pictures encoded. Imports no torch."""

import asyncio
import time
from typing import Any, Protocol

import numpy as np

from prospect.errors import ProspectError, session_error
from prospect.serving.engines import ANSWERS_WITHIN_S, FOUND_WITHIN_S, Directory
from prospect.serving.replay import unpack
from prospect.serving.wire import Connection, LostConnectionError, connect

TRIES = 3
"""Encoders that one picture may be lost with: it may be what they die of."""
LOOKED_EVERY_S = 0.1


class Encoder(Protocol):
    """Turns a client's picture into a frame's features."""

    async def encode(self, image: bytes) -> np.ndarray:
        """Encode a JPEG, PNG or WebP -> float16 [I, D]; raises DataError where the bytes hold no picture."""

    async def count(self) -> int:
        """Return how many processes encode."""


class NoEncoder:
    """Stands for a model whose clients send embeddings."""

    def __init__(self, fingerprint: str) -> None:
        self._fingerprint = fingerprint

    async def encode(self, image: bytes) -> np.ndarray:
        """Refuse."""
        message = f"image: this model has no encoder here; send embeddings of fingerprint {self._fingerprint}"
        raise session_error("no_encoder", message, "image")

    async def count(self) -> int:
        return 0


class RemoteEncoder:
    """The encoders of other processes, one after the other.

    Args:
        directory: knows them.
        secret: that they ask for.
    """

    def __init__(self, directory: Directory, secret: str) -> None:
        self._directory, self._secret = directory, secret
        self._connections: dict[str, Connection] = {}
        self._turn = 0

    async def encode(self, image: bytes) -> np.ndarray:
        """Encode a picture, in another process if the first one dies.

        Raises:
            DataError: the bytes hold no picture.
            SessionError: `unavailable`: no encoder answers.
        """
        for _ in range(TRIES):
            connection = await self._next()
            try:
                return unpack(await connection.call("encode", image, within=ANSWERS_WITHIN_S))[0]
            except LostConnectionError:
                continue
        raise _unavailable()

    async def count(self) -> int:
        return len(await self._directory.addresses())

    async def _next(self) -> Connection:
        """A connection to the next encoder, waiting while all of them are being replaced."""
        until = time.monotonic() + FOUND_WITHIN_S
        while True:
            try:
                return await self._reach_next()
            except LostConnectionError:
                if time.monotonic() > until:
                    raise _unavailable() from None
            await asyncio.sleep(LOOKED_EVERY_S)

    async def _reach_next(self) -> Connection:
        addresses = sorted(await self._directory.addresses())
        if not addresses:
            raise LostConnectionError("there is no encoder")
        self._turn += 1
        address = addresses[self._turn % len(addresses)]
        connection = self._connections.get(address)
        if connection is None or not connection.is_open:
            connection = self._connections[address] = await connect(address, self._secret, self)
        return connection

    async def answer(self, connection: Connection, operation: str, arguments: list[Any]) -> Any:
        """Refuse: encoders ask nothing."""
        raise session_error("internal", f"operation {operation!r} is unknown")

    def notice(self, connection: Connection, operation: str, arguments: list[Any]) -> None:
        """Ignore: encoders say nothing by themselves."""

    def lost(self, connection: Connection) -> None:
        """Forget it."""
        self._connections = {name: each for name, each in self._connections.items() if each is not connection}


def _unavailable() -> ProspectError:
    return session_error("unavailable", "image: no encoder answers; try again, or send embeddings", "image")
