"""Closes, parks and erases the sessions that nobody uses."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Literal

from prospect.errors import SessionError, UnknownSessionError
from prospect.serving.settings import SessionLimits
from prospect.serving.stream import Stream
from prospect.serving.wire import LostConnectionError

log = logging.getLogger(__name__)

CloseReason = Literal["client", "idle", "disconnected"]


class Sweeper:
    """Looks at all sessions of a gateway from time to time.

    Args:
        streams: the sessions, by id.
        limits: of theirs.
        end: closes one.
        forget_ended: forgets those that were closed some time ago.
        expire: erases from the store what its retention time is over for.
    """

    def __init__(
        self,
        streams: Mapping[str, Stream],
        limits: SessionLimits,
        end: Callable[[Stream, CloseReason], Awaitable[object]],
        forget_ended: Callable[[], None],
        expire: Callable[[], Awaitable[None]],
    ) -> None:
        self._streams, self._limits = streams, limits
        self._end, self._forget_ended, self._expire = end, forget_ended, expire

    async def run(self) -> None:
        """Sweep without end; whatever happens in a round, the next one comes."""
        while True:
            await asyncio.sleep(min(self._limits.idle_timeout_s, self._limits.park_after_s) / 4)
            try:
                await self.sweep()
            except Exception:
                log.exception("sweeping idle sessions")

    async def sweep(self) -> None:
        """Look once."""
        self._forget_ended()
        for stream in list(self._streams.values()):
            idle = time.monotonic() - stream.touched
            if idle > self._limits.idle_timeout_s and not stream.inbox.pending:
                with suppress(UnknownSessionError):  # its client closed it meanwhile
                    await self._end(stream, "idle")
            elif idle > self._limits.park_after_s and stream.link is not None:
                with suppress(LostConnectionError, SessionError):
                    await stream.link.call("park", stream.session_id, stream.epoch)
        await self._expire()
