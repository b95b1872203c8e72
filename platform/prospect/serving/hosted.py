"""A session as an engine's process has it, and what a step brings of it."""

from collections import deque
from dataclasses import dataclass, field
from typing import Any

from prospect.serving.events import HostedEvent
from prospect.serving.replay import Json
from prospect.serving.wire import Connection

REMEMBERED = 512
"""Events of a session that are kept for a gateway which takes it over."""


@dataclass
class Hosted:
    """A session in this engine.

    Attributes:
        epoch: of the owner; what older ones send is refused.
        owner: connection of the gateway that has it; None: that gateway is gone.
        number: of its last event, counted over all engines that had it.
        seqs: of frames pushed and not decided.
        recent: its last events, as (number, seq, packed event).
        left_at: loop time at which its gateway was lost.
    """

    epoch: int
    owner: Connection | None
    number: int = 0
    seqs: deque[int] = field(default_factory=deque)
    recent: deque[tuple[int, int | None, list[Any]]] = field(default_factory=lambda: deque(maxlen=REMEMBERED))
    left_at: float = 0.0
    first_frame: int = 0
    """Of the context in the log that the gateway has."""


@dataclass
class News:
    """What a step brought of one session, or which of its frames were taken."""

    taken: list[int] = field(default_factory=list)
    """Seqs; noted in the event loop, in whose order every step and every log come back from the engine's thread."""
    events: list[HostedEvent] = field(default_factory=list)
    base: Json | None = None
    progress: Json | None = None
