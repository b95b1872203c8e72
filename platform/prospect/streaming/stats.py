"""What an engine has done, for benchmarks and operators."""

from dataclasses import dataclass, field, fields

from prospect.streaming.kv_cache.pool import PageCounts
from prospect.streaming.session.shared import Counters


@dataclass(frozen=True)
class EngineStats:
    """Since the engine was made, closed sessions included."""

    sessions: int
    """Open now."""
    parked: int
    """Of these, outside the pool."""
    capacity: int
    """Full sessions that fit into the pool."""
    pages: PageCounts
    page_bytes: int
    frames: int
    """Decided."""
    fast_frames: int
    """Of these, without `lm_head`."""
    tokens: int
    """Through the trunk."""
    lm_head_rows: int
    """Hidden states that met `lm_head`."""
    step_seconds: tuple[float, ...]
    """Of the last thousand steps."""

    @property
    def fast_share(self) -> float:
        """1 where nothing was decided yet."""
        return self.fast_frames / self.frames if self.frames else 1.0


@dataclass
class ClosedSessionTotals:
    """The counters of closed sessions, added up."""

    total: Counters = field(default_factory=Counters)

    def add(self, counters: Counters) -> None:
        for one in fields(Counters):
            setattr(self.total, one.name, getattr(self.total, one.name) + getattr(counters, one.name))
