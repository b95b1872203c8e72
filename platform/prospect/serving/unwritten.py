"""What the store does not have yet."""

from dataclasses import dataclass, field

from prospect.serving.replay import DecidedFrame
from prospect.serving.store import EventRow


@dataclass
class Unwritten:
    """What a stream has said since it was last written to the store."""

    events: list[EventRow] = field(default_factory=list)
    frames: list[DecidedFrame] = field(default_factory=list)
    based: bool = False
