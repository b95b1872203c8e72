"""The load of the serving benchmark: sessions over WebSockets, in a process of its own.

Times are seconds since the measurement began. A frame is due whatever the server does (an open loop) and counts from
when it was handed to the socket; how much later than due that was is the client's own lateness. Light: its process
imports no torch.
"""

import asyncio
import gc
import json
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np
from websockets.asyncio.client import ClientConnection, connect

from prospect.errors import ProspectError

WARM_UP = 2
"""Frames of every session before frame 0."""
_AHEAD_S = 0.3
"""Between the start of a measurement and its frame 0."""
_OPENED_AT_ONCE = 8


class Stream:
    """One session on one socket.

    Args:
        messages: of all pictures, without type and seq.
        pictures: index of each frame's picture.
    """

    def __init__(self, url: str, opening: dict[str, Any], messages: Sequence[str], pictures: np.ndarray) -> None:
        self._url, self._opening, self._messages, self._pictures = url, opening, messages, pictures
        self.sent, self.first, self.done, self.dropped = (np.full(len(pictures), np.nan) for _ in range(4))
        self.began = 0.0
        self.num_answered = 0
        """Frames decided or dropped."""
        self._next = 0
        self._changed = asyncio.Event()
        self._socket: ClientConnection
        self._reader: asyncio.Task[None]

    async def open(self, compression: str | None) -> None:
        """Open the session and have its first frames decided."""
        self._socket = await connect(
            self._url, compression=compression, open_timeout=30, max_queue=None, max_size=None, proxy=None
        )
        await self._socket.send(json.dumps(self._opening))
        created = json.loads(await self._socket.recv())
        if created["type"] != "session.created":
            raise ProspectError(f"benchmark: a session was not opened: {created}")
        for seq in range(WARM_UP):
            await self._socket.send(self._message(seq, int(self._pictures[0])))
        while json.loads(await self._socket.recv()).get("seq") != WARM_UP - 1:
            pass
        self._reader = asyncio.create_task(self._read())

    async def send(self) -> None:
        """Send the next frame."""
        frame = self._next
        self._next += 1
        text = self._message(frame + WARM_UP, int(self._pictures[frame]))
        self.sent[frame] = time.perf_counter() - self.began
        await self._socket.send(text)

    async def pace(self, due: np.ndarray) -> None:
        """Send every frame when it is due."""
        for at in due:
            await asyncio.sleep(self.began + at - time.perf_counter())
            await self.send()

    async def saturate(self, in_flight: int, seconds: float) -> None:
        """Keep so many frames under way."""
        while time.perf_counter() - self.began < seconds and self._next < len(self._pictures):
            if self._next - self.num_answered < in_flight:
                await self.send()
            else:
                self._changed.clear()
                await self._changed.wait()

    async def finish(self) -> None:
        """Return when every frame sent is answered."""
        while self.num_answered < self._next:
            self._changed.clear()
            await self._changed.wait()

    async def close(self) -> None:
        """Close the session, and the socket when the server says so."""
        await self._socket.send('{"type": "session.close"}')
        await self._reader

    def _message(self, seq: int, picture: int) -> str:
        return f'{{"type": "input_frame.append", "seq": {seq}, {self._messages[picture]}}}'

    async def _read(self) -> None:
        async for text in self._socket:
            self._take(json.loads(text), time.perf_counter() - self.began)

    def _take(self, message: dict[str, Any], now: float) -> None:
        frame = message.get("seq", -1) - WARM_UP
        if frame < 0:
            return
        kind = message["type"]
        if kind == "error":
            raise ProspectError(f"benchmark: frame {frame} was refused: {message}")
        if kind in ("decision", "response.delta") and np.isnan(self.first[frame]):
            self.first[frame] = now
        if kind in ("decision", "frame.dropped"):
            (self.done if kind == "decision" else self.dropped)[frame] = now
            self.num_answered += 1
            self._changed.set()


class Load:
    """The sessions of this process, in groups of one server and one kind of frames each."""

    def __init__(self) -> None:
        self.runner = asyncio.Runner()
        self.groups: list[list[Stream]] = []

    async def open(self, groups: Sequence[dict[str, Any]], compression: str | None) -> None:
        limit = asyncio.Semaphore(_OPENED_AT_ONCE)

        async def opened(stream: Stream) -> None:
            async with limit:
                await stream.open(compression)

        self.groups = [
            [Stream(each["url"], each["opening"], each["messages"], row) for row in each["pictures"]] for each in groups
        ]
        await asyncio.gather(*(opened(stream) for streams in self.groups for stream in streams))

    async def pace(self, due: Sequence[np.ndarray], give_up_s: float, start_at: float | None) -> list[dict[str, Any]]:
        """Send each group's frames at `due` [S, F]; `start_at`: Unix time of 0."""
        _settle()
        began = time.perf_counter() + (_AHEAD_S if start_at is None else start_at - time.time())
        work = [
            stream.pace(row)
            for streams, rows in zip(self.groups, due, strict=True)
            for stream, row in zip(streams, rows, strict=True)
        ]
        return await self._measured(began, work, give_up_s)

    async def saturate(self, in_flight: int, seconds: float, give_up_s: float) -> list[dict[str, Any]]:
        _settle()
        work = [stream.saturate(in_flight, seconds) for streams in self.groups for stream in streams]
        return await self._measured(time.perf_counter(), work, seconds + give_up_s)

    async def _measured(self, began: float, work: Sequence[Any], give_up_s: float) -> list[dict[str, Any]]:
        streams = [stream for group in self.groups for stream in group]
        for stream in streams:
            stream.began = began
        before = time.process_time()
        await asyncio.gather(*work)
        with suppress(TimeoutError):  # what is not answered counts as undecided
            await asyncio.wait_for(asyncio.gather(*(stream.finish() for stream in streams)), give_up_s)
        seconds = time.perf_counter() - began
        cpu = time.process_time() - before
        names = ("sent", "first", "done", "dropped")
        return [
            {name: np.stack([getattr(stream, name) for stream in group]) for name in names}
            | {"seconds": seconds, "cpu_s": cpu}
            for group in self.groups
        ]

    async def close(self) -> None:
        closing = asyncio.gather(*(stream.close() for group in self.groups for stream in group), return_exceptions=True)
        await asyncio.wait_for(closing, 30)
        self.groups = []


def _settle() -> None:
    """Keep the collection of what is there from falling into the measurement."""
    gc.unfreeze()
    gc.collect()
    gc.freeze()


# In the client's process ---------------------------------------------------------------------------------------

_load: Load | None = None


def open_sessions(groups: Sequence[dict[str, Any]], compression: bool) -> int:
    """Open the sessions of each group (`url`, `opening`, `messages`, `pictures` [S, F]); returns the process' id."""
    global _load
    _load = _load or Load()
    _load.runner.run(_load.open(groups, "deflate" if compression else None))
    return os.getpid()


def pace(due: Sequence[np.ndarray], give_up_s: float, start_at: float | None = None) -> list[dict[str, Any]]:
    """Send the frames of each group when they are due; returns each group's times [S, F] and the process' CPU time."""
    assert _load is not None
    return _load.runner.run(_load.pace(due, give_up_s, start_at))


def saturate(in_flight: int, seconds: float, give_up_s: float) -> list[dict[str, Any]]:
    """Keep so many frames of each session under way; returns as `pace`."""
    assert _load is not None
    return _load.runner.run(_load.saturate(in_flight, seconds, give_up_s))


def close_sessions() -> None:
    assert _load is not None
    _load.runner.run(_load.close())
