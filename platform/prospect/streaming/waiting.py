"""Frames of a live session that wait for the engine: how many it has ahead, and which ones are dropped.

One rule for served sessions and for latency-aware evaluations (docs/protocol.md#frames-order-and-time).
"""

from collections import deque
from collections.abc import Iterable
from typing import Protocol, TypeVar

from pydantic import Field

from prospect.settings import Settings

FRAMES_AHEAD = 16
"""Frames of a session that are sent ahead of their decisions: two chunks of a catch-up. Later ones wait where they can
still be dropped."""


class WaitingSettings(Settings):
    """How many frames of a live stream wait, and for how long."""

    max_waiting_frames: int = Field(default=120, ge=1)
    """Most frames of one stream that are not decided; with one more the oldest is dropped."""
    max_delay_s: float = Field(default=10.0, gt=0)
    """Seconds that a frame of a stream may wait for the engine before it is dropped."""


class WaitingFrame(Protocol):
    """A frame that is taken and not decided."""

    arrived: float
    """Seconds of the caller's clock."""
    droppable: bool
    in_engine: bool


F = TypeVar("F", bound=WaitingFrame)


def send_ahead(waiting: Iterable[F], most: int) -> list[F]:
    """Return the next frames for an engine that may have `most` at once; they count as its own then."""
    frames = list(waiting)
    ahead = sum(frame.in_engine for frame in frames)
    ready = [frame for frame in frames if not frame.in_engine][: max(most - ahead, 0)]
    for frame in ready:
        frame.in_engine = True
    return ready


def drop_oldest(waiting: deque[F], most: int, since: float | None) -> tuple[F, F | None] | None:
    """Take out the oldest frame that may be dropped and that no engine has, if it has to go.

    Args:
        waiting: frames in order of arrival.
        most: frames that may wait.
        since: time at which a frame may have arrived at the earliest; None: at any.

    Returns:
        The frame, and the one behind it, which takes its texts (None: the next that comes does); None: all may stay.
    """
    at = next((at for at, frame in enumerate(waiting) if frame.droppable and not frame.in_engine), None)
    if at is None or not (len(waiting) > most or (since is not None and waiting[at].arrived < since)):
        return None
    dropped = waiting[at]
    del waiting[at]
    return dropped, waiting[at] if at < len(waiting) else None
