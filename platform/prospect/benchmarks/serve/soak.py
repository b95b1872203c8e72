"""A crowd of clients that open sessions, lose their connections, come back, close or simply stay away."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import numpy as np

from prospect.client.asynchronous import AsyncLiveSession, AsyncProspectClient
from prospect.errors import ProspectError
from prospect.hashing import derived_seed
from prospect.protocol.messages import FrameDecision, FrameDropped, SessionClosed, SessionMoved

AWAY_S = 3.0
"""Longest absence of somebody who comes back."""
_RETURNS, _ABANDONS = 0.5, 0.1
"""Shares of the stays after which somebody comes back on a new connection, or never again."""
_ENDS_WITHIN_S = 30.0


class Crowd:
    """People who stream one session after the other.

    Args:
        url: of the server.
        opening: fields of `session.update`.
        embeddings: float16 [N, I, D], the frames.
        frames_per_s: of each session.
        stays: shortest and longest seconds for which somebody streams before the connection drops, or the session ends.

    Attributes:
        counts: what happened, by name.
    """

    def __init__(
        self,
        url: str,
        opening: Mapping[str, Any],
        embeddings: np.ndarray,
        frames_per_s: float,
        stays: tuple[float, float],
    ) -> None:
        self._url, self._embeddings, self._pause, self._stays = url, embeddings, 1 / frames_per_s, stays
        self._opening = {name: each for name, each in opening.items() if name != "type"}
        self.counts: Counter[str] = Counter()

    async def run(self, people: int, seconds: float, seed: int) -> None:
        """Stream for so many seconds; whoever is streaming then ends the session."""
        until = time.monotonic() + seconds
        async with AsyncProspectClient(self._url, timeout=60) as client:
            draws = [random.Random(derived_seed(seed, person)) for person in range(people)]
            await asyncio.gather(*(self._person(client, draw, until) for draw in draws))

    async def _person(self, client: AsyncProspectClient, draw: random.Random, until: float) -> None:
        while time.monotonic() < until:
            try:
                await self._session(client, draw, until)
            except (ProspectError, OSError, TimeoutError) as error:
                self.counts[f"error {getattr(error, 'code', type(error).__name__)}"] += 1
                await asyncio.sleep(draw.uniform(0.1, 1.0))

    async def _session(self, client: AsyncProspectClient, draw: random.Random, until: float) -> None:
        self.counts["opened"] += 1
        live = client.live(**self._opening, keep=True)
        while True:
            async with live:
                reader = asyncio.create_task(self._listen(live))
                try:
                    await self._stream(live, draw, until)
                    fate = draw.random() if time.monotonic() < until else 1.0
                    if fate > _RETURNS + _ABANDONS:
                        await live.close()
                        await asyncio.wait_for(reader, _ENDS_WITHIN_S)
                        return
                finally:
                    reader.cancel()
                    with suppress(asyncio.CancelledError, ProspectError):
                        await reader
                await live.disconnect()
            if fate > _RETURNS:
                self.counts["abandoned"] += 1
                return
            await asyncio.sleep(draw.uniform(0, AWAY_S))
            self.counts["came back"] += 1
            live = client.resume(live.created.resume)

    async def _stream(self, live: AsyncLiveSession, draw: random.Random, until: float) -> None:
        ends = min(time.monotonic() + draw.uniform(*self._stays), until)
        while time.monotonic() < ends:
            self.counts["frames"] += 1
            await live.push(self._embeddings[draw.randrange(len(self._embeddings))])
            await asyncio.sleep(self._pause)

    async def _listen(self, live: AsyncLiveSession) -> None:
        async for message in live:
            match message:
                case FrameDecision():
                    self.counts["decided"] += 1
                case FrameDropped():
                    self.counts["dropped"] += 1
                case SessionMoved():
                    self.counts["moved"] += 1
                case SessionClosed():
                    self.counts["closed"] += 1


def crowd(
    url: str,
    opening: Mapping[str, Any],
    embeddings: np.ndarray,
    frames_per_s: float,
    stays: tuple[float, float],
    people: int,
    seconds: float,
    seed: int,
) -> dict[str, int]:
    """Run a `Crowd`; returns its counts."""
    found = Crowd(url, opening, embeddings, frames_per_s, stays)
    asyncio.run(found.run(people, seconds, seed))
    return dict(found.counts)
