"""How a served application is, as one gateway sees it: health, readiness, status, and its own gauges."""

import asyncio
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Literal

from prospect.errors import ProspectError, session_error
from prospect.protocol.messages import LastMove, ServerStatus, StepTimes
from prospect.serving.encoders import Encoder
from prospect.serving.engines import EngineLink, EnginePool
from prospect.serving.monitor import Monitor
from prospect.serving.replay import Json
from prospect.serving.stream import Stream
from prospect.serving.wire import LostConnectionError
from prospect.serving.writer import StoreWriter

ASKED_WITHIN_S = 2.0
"""Seconds within which an engine says how it is, or does not count."""

Health = Literal["ok", "degraded"]


class Overview:
    """Belongs to one gateway.

    Args:
        pool: the engines.
        writer: to the store; None: there is none.
        streams: the gateway's sessions.
        encoder: of pictures; None: there is none.
        monitor: what the gateway has counted.
    """

    def __init__(
        self,
        pool: EnginePool,
        writer: StoreWriter | None,
        streams: Mapping[str, Stream],
        encoder: Encoder | None,
        monitor: Monitor,
    ) -> None:
        self._pool, self._writer, self._streams = pool, writer, streams
        self._encoder, self._monitor = encoder, monitor

    async def health(self) -> Health:
        """Return `ok`, or `degraded` while the store is away, once an engine's thread is free for a moment.

        Raises:
            SessionError: `unavailable`: no engine answers.
        """
        link = await self._pool.any()
        await link.connection.call("ping")
        return "degraded" if self._store() == "away" else "ok"

    async def ready(self) -> None:
        """Return if a new session would be taken; waits for an engine while there is none.

        Raises:
            SessionError: `busy`: no engine has a place; `unavailable`: there is none, or the store is away.
        """
        await self._pool.any()
        self._check_ready()

    def _check_ready(self) -> None:
        if not self._pool.links:
            raise session_error("unavailable", "no engine answers; try again")
        if self._store() == "away":
            raise session_error("unavailable", "the session store is away; try again")
        if all(link.is_full for link in self._pool.links):
            raise session_error("busy", "all sessions of all engines are taken; try again later")

    def measure(self) -> None:
        """Note the gateway's gauges."""
        self._store()
        note, monitor = self._monitor.readings.set, self._monitor
        note("prospect_sessions", len(self._streams))
        note("prospect_frames_waiting", sum(len(stream.inbox.pending) for stream in self._streams.values()))
        note("prospect_engines", len(self._pool.links))
        note("prospect_store_lag_seconds", monitor.store_lag)
        note("prospect_store_away", float(monitor.store == "away"))

    async def status(self) -> ServerStatus:
        """Ask all engines, and sum up what they and the gateways say."""
        self._store()
        with suppress(TimeoutError, ProspectError):  # a gateway that has just begun looks for engines first
            await asyncio.wait_for(self._pool.any(), ASKED_WITHIN_S)
        links = self._pool.links
        loads = [load for load in await asyncio.gather(*map(_ask, links)) if load is not None]
        gateways: dict[str, Json] = {name: each for load in loads for name, each in load["gateways"].items()}
        gateways[self._monitor.name] = self._monitor.summary()
        ready, reason = True, ""
        try:
            self._check_ready()
        except ProspectError as error:
            ready, reason = False, str(error)
        stores = [each["store"] for each in gateways.values()]
        slowest = max(loads, key=lambda load: load["step_p95"], default={"step_p50": 0.0, "step_p95": 0.0})
        return ServerStatus(
            health="unavailable" if not loads else "degraded" if "away" in stores else "ok",
            ready=ready and bool(loads),
            reason=reason,
            model=links[0].card if links else None,
            gateways=len(gateways),
            engines=len(loads),
            encoders=0 if self._encoder is None else await self._encoder.count(),
            sessions=sum(load["sessions"] for load in loads),
            capacity=sum(link.capacity for link in links),
            decisions_per_second=round(sum(load["decisions_per_second"] for load in loads), 2),
            step_seconds=StepTimes(p50=slowest["step_p50"], p95=slowest["step_p95"]),
            dropped_frames=sum(each["dropped"] for each in gateways.values()),
            moves=sum(each["moves"] for each in gateways.values()),
            last_move=_latest(each["last_move"] for each in gateways.values() if each["last_move"]),
            store="away" if "away" in stores else stores[0],
            store_lag_seconds=round(max(each["store_lag"] for each in gateways.values()), 3),
        )

    def _store(self) -> str:
        """Note how the store is."""
        if self._writer is not None:
            self._monitor.store = "away" if self._writer.degraded else "ok"
            self._monitor.store_lag = self._writer.lag
        return self._monitor.store


async def _ask(link: EngineLink) -> Json | None:
    with suppress(LostConnectionError, ProspectError):
        return await link.ask(ASKED_WITHIN_S)
    return None


def _latest(moves: Any) -> LastMove | None:
    latest = max(moves, default=None)
    if latest is None:
        return None
    when, seconds, lost = latest
    return LastMove(seconds_ago=round(max(time.time() - when, 0.0), 1), seconds=seconds, lost_frames=lost)
