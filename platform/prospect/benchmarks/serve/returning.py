"""Clients that stay while processes of their server are killed, and how long each waits for its next decision."""

import asyncio
import os
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from prospect.client.asynchronous import AsyncLiveSession, AsyncProspectClient
from prospect.protocol.messages import FrameDecision, FrameDropped, SessionMoved

FRAMES_PER_S = 4.0
"""Twice as often as a camera: what is waited for is seen sooner."""
_BEFORE_S = 3.0
"""Between the first frame and the kill."""


@dataclass
class Stay:
    """What one session went through.

    Attributes:
        sent: when each frame was sent, `time.perf_counter()`.
        is_back: set with `back`.
        back: seconds from the kill to the first decision of a frame that was sent after it.
    """

    sent: list[float] = field(default_factory=list)
    is_back: asyncio.Event = field(default_factory=asyncio.Event)
    back: float | None = None
    decided: int = 0
    dropped: int = 0
    moved: SessionMoved | None = None
    connected_again: bool = False


class Deaths:
    """Sessions that stream embeddings, and what is killed under them.

    Args:
        opening: fields of `session.update`.
        embeddings: float16 [N, I, D].
    """

    def __init__(self, url: str, opening: dict[str, Any], embeddings: np.ndarray) -> None:
        self._url, self._opening, self._embeddings = url, opening, embeddings
        self._killed = float("inf")
        self._over = asyncio.Event()

    async def run(self, sessions: int, victims: Sequence[int], within: float) -> list[Stay]:
        """Stream; kill the processes; return when every session has its next decision, or in that many seconds."""
        stays = [Stay() for _ in range(sessions)]
        async with AsyncProspectClient(self._url, timeout=within) as client:
            tasks = [asyncio.create_task(self._stay(client, stay, n / sessions)) for n, stay in enumerate(stays)]
            await asyncio.sleep(_BEFORE_S)
            if not all(stay.decided for stay in stays):
                raise AssertionError(f"sessions were not decided before the kill: {stays}")
            self._killed = time.perf_counter()
            for victim in victims:
                os.kill(victim, signal.SIGKILL)
            with suppress(TimeoutError):
                await asyncio.wait_for(asyncio.gather(*(stay.is_back.wait() for stay in stays)), within)
            self._over.set()
            await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 30)
        return stays

    async def _stay(self, client: AsyncProspectClient, stay: Stay, phase: float) -> None:
        opening = {name: each for name, each in self._opening.items() if name != "type"}
        async with client.live(**opening) as live:
            handle = live.created.resume
            reader = asyncio.create_task(self._listen(live, stay))
            await asyncio.sleep(phase / FRAMES_PER_S)
            while not self._over.is_set():
                stay.sent.append(time.perf_counter())
                await live.push(self._embeddings[len(stay.sent) % len(self._embeddings)])
                await asyncio.sleep(1 / FRAMES_PER_S)
            stay.connected_again = live.created.resume != handle
            reader.cancel()

    async def _listen(self, live: AsyncLiveSession, stay: Stay) -> None:
        async for message in live:
            match message:
                case FrameDecision():
                    stay.decided += 1
                    if stay.back is None and stay.sent[message.seq] > self._killed:
                        stay.back = time.perf_counter() - self._killed
                        stay.is_back.set()
                case FrameDropped():
                    stay.dropped += 1
                case SessionMoved():
                    stay.moved = message


def die(
    url: str, opening: dict[str, Any], embeddings: np.ndarray, sessions: int, victims: Sequence[int], within: float
) -> list[dict[str, Any]]:
    """Stream so many sessions, kill the processes `victims` after a while, and return what each session saw."""

    async def story() -> list[Stay]:
        return await Deaths(url, opening, embeddings).run(sessions, victims, within)

    return [
        {
            "back_s": stay.back,
            "moved_s": stay.moved and stay.moved.seconds,
            "lost_frames": stay.moved.lost_frames if stay.moved else 0,
            "dropped": stay.dropped,
            "affected": stay.moved is not None or stay.connected_again,
        }
        for stay in asyncio.run(story())
    ]
