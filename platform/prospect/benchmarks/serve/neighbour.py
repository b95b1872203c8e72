"""A client that sends the largest text, recipe and picture that a server takes, one after the other."""

import asyncio
import base64
import io
import json
import time
from collections.abc import Callable, Coroutine
from typing import Any, Literal

import numpy as np
from PIL import Image
from websockets.asyncio.client import ClientConnection, connect

from prospect.protocol.client_messages import (
    MAX_GOAL,
    MAX_IMAGE_BYTES,
    MAX_KNOWLEDGE,
    MAX_RECIPE,
    MAX_STEPS,
    MAX_TEXT,
)

Noise = Literal["nobody", "text", "recipe", "picture"]
_SIDE = 4000
"""Pixels of the picture's side: 16 million pixels are taken."""
_WORD = "Stir 7 cups, then wait. "


class Neighbour:
    """One session after the other, or one that stays; counts what was answered.

    Args:
        url: of the streams.
        opening: of an ordinary session.
        frame: an ordinary frame, as the fields of a message.
    """

    def __init__(self, url: str, opening: dict[str, Any], frame: str) -> None:
        self._url, self._opening, self._frame = url, opening, frame
        self.sent = 0
        self.refused: dict[str, int] = {}
        """By the error's code."""
        self.bytes = 0
        """Of a message."""

    async def text(self, seconds: float) -> None:
        """Texts of a user, each before a frame."""
        message = json.dumps({"type": "input_text.append", "text": _filled(MAX_TEXT)})
        socket, seq, until = await self._opened(self._opening), 0, time.perf_counter() + seconds
        while time.perf_counter() < until:
            await self._send(socket, message)
            await socket.send(self._frame_of(seq, self._frame))
            await self._decided(socket, seq)
            seq += 1
        await socket.close()

    async def picture(self, seconds: float) -> None:
        """Pictures of the most bytes and pixels."""
        data = base64.b64encode(largest_picture()).decode()
        socket, seq, until = await self._opened(self._opening), 0, time.perf_counter() + seconds
        while time.perf_counter() < until:
            await self._send(socket, self._frame_of(seq, f'"image": "{data}"'))
            await self._decided(socket, seq)
            seq += 1
        await socket.close()

    async def recipe(self, seconds: float) -> None:
        """Sessions of the most steps and words, which no context holds, and of the most steps alone, with a frame."""
        steps = [_filled(MAX_RECIPE // MAX_STEPS)] * MAX_STEPS
        words = {"goal": _filled(MAX_GOAL), "knowledge": _filled(MAX_KNOWLEDGE)}
        until = time.perf_counter() + seconds
        while time.perf_counter() < until:
            for more in (words, {}):
                try:
                    socket = await self._opened(self._opening | {"steps": steps} | more)
                except _RefusedError:
                    continue
                await socket.send(self._frame_of(0, self._frame))
                await self._decided(socket, 0)
                await socket.close()

    async def _opened(self, opening: dict[str, Any]) -> ClientConnection:
        socket = await connect(self._url, compression=None, open_timeout=60, max_size=None, proxy=None)
        await self._send(socket, json.dumps(opening))
        message = json.loads(await socket.recv())
        if message["type"] == "error":
            self._refuse(message["code"])
            await socket.close()
            raise _RefusedError
        return socket

    async def _send(self, socket: ClientConnection, message: str) -> None:
        self.sent += 1
        self.bytes = max(self.bytes, len(message))
        await socket.send(message)

    async def _decided(self, socket: ClientConnection, seq: int) -> None:
        while True:
            message = json.loads(await socket.recv())
            if message["type"] == "error":
                self._refuse(message["code"])
            if message.get("seq") == seq and message["type"] in ("decision", "frame.dropped", "error"):
                return

    def _refuse(self, code: str) -> None:
        self.refused[code] = self.refused.get(code, 0) + 1

    def _frame_of(self, seq: int, fields: str) -> str:
        return f'{{"type": "input_frame.append", "seq": {seq}, {fields}}}'


class _RefusedError(Exception):
    """A session was not opened."""


def largest_picture() -> bytes:
    """A JPEG of as many pixels and nearly as many bytes as are taken."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (_SIDE // 4, _SIDE // 4, 3), np.uint8))
    picture = coarse.resize((_SIDE, _SIDE), Image.Resampling.BICUBIC)
    for quality in (90, 80, 70, 50, 30, 10):
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=quality)
        if file.tell() <= MAX_IMAGE_BYTES:
            return file.getvalue()
    raise AssertionError("no quality makes the picture small enough")


def _filled(length: int) -> str:
    return (_WORD * (length // len(_WORD) + 1))[:length]


def disturb(noise: Noise, url: str, opening: dict[str, Any], frame: str, seconds: float) -> dict[str, Any]:
    """Send the largest messages of a kind for so many seconds; returns how many were sent and refused."""
    neighbour = Neighbour(url, opening, frame)
    ways: dict[Noise, Callable[[float], Coroutine[Any, Any, None]]] = {
        "text": neighbour.text,
        "recipe": neighbour.recipe,
        "picture": neighbour.picture,
    }
    asyncio.run(ways[noise](seconds))
    return {"sent": neighbour.sent, "refused": neighbour.refused, "bytes": neighbour.bytes}
