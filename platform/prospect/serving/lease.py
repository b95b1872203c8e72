"""Notices that this process slept: others may own its sessions by now, and it must ask before it says anything."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

from prospect.serving.store import StoreUnavailable

log = logging.getLogger(__name__)

LEASE_S = 8.0
"""Seconds that a process may sleep; other gateways take it for dead after `prospect.serving.peers.WITHIN_S`."""
BEATS_EVERY_S = 1.0


class Lease:
    """A clock that this process keeps wound; belongs to one event loop.

    Args:
        check: gives up what is not owned any more.
    """

    def __init__(self, check: Callable[[], Awaitable[None]]) -> None:
        self._check = check
        self._held_at = time.monotonic()
        self._lock = asyncio.Lock()
        self._task = asyncio.create_task(self._beat())

    async def hold(self) -> None:
        """Return at once if the process was awake; else once it has checked what it owns."""
        if time.monotonic() - self._held_at <= LEASE_S:
            return
        async with self._lock:
            if time.monotonic() - self._held_at > LEASE_S:
                log.warning("this gateway slept for %.0f seconds", time.monotonic() - self._held_at)
                with suppress(StoreUnavailable):  # then nobody else could take anything
                    await self._check()
                self._held_at = time.monotonic()

    def stop(self) -> None:
        self._task.cancel()

    async def _beat(self) -> None:
        while True:
            await self.hold()
            self._held_at = time.monotonic()
            await asyncio.sleep(BEATS_EVERY_S)
