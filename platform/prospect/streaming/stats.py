"""Statistics of an engine, for benchmarks and operators."""

from dataclasses import dataclass, field, fields

from prospect.streaming.kv_cache.pool import PageCounts
from prospect.streaming.session.shared import Counters


@dataclass(frozen=True)
class EngineStats:
    """What an engine has done since it was made, closed sessions included, and what its pool holds now."""

    sessions: int
    """Open sessions."""
    parked: int
    """Open sessions outside the pool."""
    capacity: int
    """Full sessions that fit into the pool."""
    pages: PageCounts
    page_bytes: int
    frames: int
    """Decided frames."""
    fast_frames: int
    """Frames decided without `lm_head`."""
    tokens: int
    """Tokens that ran through the trunk."""
    lm_head_rows: int
    """Hidden states that ran through `lm_head`."""
    step_seconds: tuple[float, ...]
    """Duration of each of the last thousand steps."""

    @property
    def fast_share(self) -> float:
        """Share of frames decided without `lm_head`; 1 before any frame is decided."""
        return self.fast_frames / self.frames if self.frames else 1.0


@dataclass
class ClosedSessionTotals:
    """Sums of the counters of closed sessions."""

    total: Counters = field(default_factory=Counters)

    def add(self, counters: Counters) -> None:
        for one in fields(Counters):
            setattr(self.total, one.name, getattr(self.total, one.name) + getattr(counters, one.name))
