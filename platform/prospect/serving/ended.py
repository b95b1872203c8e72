"""Sessions of a gateway that are over: their ends are being written, or their clients may not have heard of them."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager

from prospect.serving.stream import Stream

ENDED_FOR_S = 60.0
"""Seconds for which a closed session can be resumed, to hear its end."""


class EndedStreams:
    """Belongs to one event loop."""

    def __init__(self) -> None:
        self._streams: dict[str, Stream] = {}
        self._closing: dict[str, asyncio.Event] = {}

    def get(self, session_id: str) -> Stream | None:
        """The stream of a session that was closed not long ago."""
        return self._streams.get(session_id)

    def remember(self, stream: Stream) -> None:
        """Keep what a session has said for a while, for a client that lost its connection before the end."""
        stream.touched = time.monotonic()
        self._streams[stream.session_id] = stream

    def forget(self, session_id: str) -> None:
        """A new session has this id."""
        self._streams.pop(session_id, None)

    def forget_old(self) -> None:
        now = time.monotonic()
        self._streams = {sid: each for sid, each in self._streams.items() if now - each.touched < ENDED_FOR_S}

    @contextmanager
    def closing(self, stream: Stream) -> Iterator[None]:
        """While the end of a session is being written, nobody may take it over."""
        written = self._closing[stream.session_id] = asyncio.Event()
        self.remember(stream)
        try:
            yield
        finally:
            if self._closing.get(stream.session_id) is written:  # and not a later session's of the same id
                del self._closing[stream.session_id]
            written.set()

    def is_closing(self, session_id: str) -> bool:
        return session_id in self._closing

    async def closed(self, session_id: str) -> None:
        """Return once the end of the session is written, if it is being written."""
        if session_id in self._closing:
            await self._closing[session_id].wait()
