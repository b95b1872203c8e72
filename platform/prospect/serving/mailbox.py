"""What a stream's client has sent and nobody has handled: bounded, whatever the client sends and however fast."""

import asyncio
from collections import deque
from dataclasses import dataclass

from prospect.errors import ProspectError
from prospect.protocol.messages import ClientMessage, FrameAppend
from prospect.protocol.parsing import parse_client
from prospect.serving.access.access import rate_limited

MAX_FRAMES = 120
"""Frames that wait for their turn: a minute of them."""
MAX_BYTES = 64 * 2**20
"""Bytes of the frames that wait."""
MAX_OTHERS = 1000
"""Other messages that wait; a client that sends more is cut off."""


@dataclass(frozen=True)
class TooMany:
    """Stands where a frame was dropped before anybody looked at it."""

    frame: FrameAppend


Mail = ClientMessage | ProspectError | TooMany


class Mailbox:
    """Keeps messages in order; of too many frames it drops the oldest. Belongs to one event loop."""

    def __init__(self) -> None:
        self._mail: deque[Mail] = deque()
        self._sizes: deque[int] = deque()
        """Of the frames among them, in order."""
        self._arrived = asyncio.Event()
        self._is_over = False

    def put(self, data: bytes, wait: float = 0.0) -> bool:
        """Parse a message and keep it, or the mistake in it; returns False if there is no room for it.

        Args:
            data: as it came.
            wait: seconds that its client should have waited, whose key sends too much: then a frame is dropped, and
                another message refused.
        """
        if len(self._mail) - len(self._sizes) >= MAX_OTHERS + MAX_FRAMES:
            return False
        try:
            message: Mail = parse_client(data)
        except ProspectError as mistake:
            message = mistake
        if wait and not isinstance(message, ProspectError):
            message = _dropped(message) if isinstance(message, FrameAppend) else rate_limited(wait)
        self._mail.append(message)
        if isinstance(message, FrameAppend):
            self._sizes.append(len(data))
            while len(self._sizes) > MAX_FRAMES or sum(self._sizes) > MAX_BYTES:
                self._drop_oldest()
        self._arrived.set()
        return True

    def end(self) -> None:
        """Let `get` return None once all is handled."""
        self._is_over = True
        self._arrived.set()

    async def get(self) -> Mail | None:
        """Return the next message; None after the last one."""
        while not self._mail:
            if self._is_over:
                return None
            self._arrived.clear()
            await self._arrived.wait()
        mail = self._mail.popleft()
        if isinstance(mail, FrameAppend):
            self._sizes.popleft()
        return mail

    def _drop_oldest(self) -> None:
        at = next(index for index, mail in enumerate(self._mail) if isinstance(mail, FrameAppend))
        frame = self._mail[at]
        assert isinstance(frame, FrameAppend)
        self._mail[at] = _dropped(frame)
        self._sizes.popleft()


def _dropped(frame: FrameAppend) -> TooMany:
    return TooMany(FrameAppend.model_construct(seq=frame.seq, pts=frame.pts))
