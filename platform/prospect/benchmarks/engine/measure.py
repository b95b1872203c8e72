"""One system at one number of sessions: in saturation, then paced; the largest number of sessions; the soak."""

import ctypes
import gc
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import psutil
import torch

from prospect.benchmarks.engine.adapter import EngineSystem
from prospect.benchmarks.engine.load import Driven, LoadRecord, Workload, paced, saturated
from prospect.benchmarks.engine.peers import LoopSystem, PaddedSystem
from prospect.benchmarks.engine.settings import EngineSuite, System
from prospect.dialogue.timeline import FPS
from prospect.errors import OutOfPagesError
from prospect.model.checkpoint import LoadedModel
from prospect.model.interface import DSTModel
from prospect.percentiles import Percentiles
from prospect.streaming.settings import StreamingSettings

MIB, GIB = 1 << 20, 1 << 30
_HOPELESS = 0.9
"""Share of the frames/s that pacing needs: a system that is slower in saturation is not paced."""
_FINE = 16
"""Relative width of the interval at which the search ends."""


@dataclass(frozen=True)
class Paced:
    """Latencies at 2 frames/s a session.

    Attributes:
        free, all: to the decision, of frames with no own generation pending and of all.
        first_token: to the first token of an utterance.
        gave_up: a frame waited so long that the measurement was ended.
    """

    free: Percentiles
    all: Percentiles
    first_token: Percentiles
    refreshes: int
    gave_up: bool

    @property
    def in_real_time(self) -> bool:
        """99 of 100 frames were decided before the next was due."""
        return not self.gave_up and self.free.p99 < 1000 / FPS

    def within(self, suite: EngineSuite) -> bool:
        """Whether both latencies are within the limits of the search."""
        return not self.gave_up and self.free.p99 < suite.free_p99_ms and self.all.p99 < suite.all_p99_ms


@dataclass(frozen=True)
class Cell:
    """One system at one length and number of sessions.

    Attributes:
        frames_per_s, frames, step_ms: in saturation; `step_ms` is a forward pass with all that belongs to it.
        latency: in saturation, from when a frame was handed over until it was decided.
        share_of_bound: tokens/s of those that linear layers and attention alone allow.
        fast_share: frames decided without `lm_head`.
        session_mib: memory that opening the sessions and saturating them took, for each.
        kv_mib: keys and values of a full session, by their number.
        paced: None where saturation showed that it cannot keep up.
    """

    system: System
    context: int
    sessions: int
    frames_per_s: float
    frames: int
    step_ms: Percentiles
    latency: Percentiles
    share_of_bound: float
    fast_share: float
    refreshes: int
    session_mib: float
    kv_mib: float
    paced: Paced | None


def kv_bytes(model: DSTModel) -> int:
    """Bytes of one token's keys and values in all layers."""
    return model.kv_geometry.bytes_per_token(model.text.norm.weight.element_size())


def build_system(name: System, loaded: LoadedModel, workload: Workload, settings: StreamingSettings) -> Driven:
    if name == "engine":
        return EngineSystem(loaded, workload, settings)
    return (LoopSystem if name == "loop" else PaddedSystem)(loaded, workload)


def warm_up(loaded: LoadedModel, suite: EngineSuite, settings: StreamingSettings) -> None:
    """Run one session for a few frames, to keep one-time costs out of the measurements."""
    workload = Workload(suite, 1, suite.contexts[0], 4)
    system = EngineSystem(loaded, workload, settings)
    system.fill(workload.starts)
    saturated(system, workload, range(4), float("inf"))


def measure_cell(
    name: System, loaded: LoadedModel, settings: StreamingSettings, workload: Workload, bound: float
) -> Cell:
    """Fills the sessions, saturates them, then paces them; `bound`: seconds of a step with one token of each."""
    suite = workload.suite
    system, cell = saturated_cell(name, loaded, settings, workload, bound)
    if cell.frames_per_s < _HOPELESS * workload.sessions * FPS:
        return cell
    frames = range(suite.saturated_frames, workload.frames)
    return replace(cell, paced=summary(paced(system, workload, frames, suite.give_up_s)))


def saturated_cell(
    name: System, loaded: LoadedModel, settings: StreamingSettings, workload: Workload, bound: float
) -> tuple[Driven, Cell]:
    """The first half of `measure_cell`, and the system that it leaves with all sessions open."""
    suite, context, sessions = workload.suite, workload.context, workload.sessions
    before = memory_in_use(loaded)
    system = build_system(name, loaded, workload, settings)
    system.fill(workload.starts)
    filled = memory_in_use(loaded)
    needed = _HOPELESS * sessions * FPS
    full = saturated(system, workload, range(suite.saturated_frames), suite.seconds, needed)
    used = max(filled, memory_in_use(loaded)) - before
    speed = full.decided / full.seconds
    done = ~np.isnan(full.done)
    return system, Cell(
        system=name,
        context=context,
        sessions=sessions,
        frames_per_s=speed,
        frames=full.decided,
        step_ms=Percentiles.of(np.array(full.steps)),
        latency=Percentiles.of(full.latencies()[0]),
        share_of_bound=speed * workload.tokens_per_frame * bound / sessions,
        fast_share=float(full.fast[done].mean()),
        refreshes=full.refreshes,
        session_mib=used / sessions / MIB,
        kv_mib=context * kv_bytes(loaded.model) / MIB,
        paced=None,
    )


def paced_count(suite: EngineSuite) -> int:
    """Frames of a session in a paced measurement."""
    return max(1, round(suite.seconds * FPS))


def summary(record: LoadRecord) -> Paced:
    waited, free = record.latencies()
    return Paced(
        free=Percentiles.of(waited[free]),
        all=Percentiles.of(waited),
        first_token=Percentiles.of(record.first_tokens()),
        refreshes=record.refreshes,
        gave_up=record.gave_up,
    )


def largest(fits: Callable[[int], bool], most: int, start: int = 1) -> int:
    """The largest number of sessions that `fits`: doubled from `start` up to `most`, then halved; 0 if none does."""
    low, high = 0, min(start, most)
    while high <= most and fits(high):
        low, high = high, 2 * high
    high = min(high, most + 1)
    while high - low > max(1, low // _FINE):
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def largest_within(
    loaded: LoadedModel, suite: EngineSuite, settings: StreamingSettings, context: int
) -> tuple[int, dict[int, Paced]]:
    """Most sessions of the engine within the suite's limits, and every number that was tried."""
    tried: dict[int, Paced] = {}

    def fits(sessions: int) -> bool:
        if sessions * context * kv_bytes(loaded.model) > suite.memory_gib * GIB:
            return False
        try:
            tried[sessions], _ = measure_paced(loaded, suite, settings, sessions, context)
        except OutOfPagesError:
            return False
        return tried[sessions].within(suite)

    return largest(fits, suite.most_sessions, suite.search_from), tried


def measure_paced(
    loaded: LoadedModel, suite: EngineSuite, settings: StreamingSettings, sessions: int, context: int
) -> tuple[Paced, float]:
    """Fills the engine's sessions and paces them; with the MiB of memory that opening them took for each.

    Raises:
        OutOfPagesError: the cache has no room for so many.
    """
    before = memory_in_use(loaded)
    frames = range(paced_count(suite))
    workload = Workload(suite, sessions, context, len(frames))
    system = EngineSystem(loaded, workload, settings)
    system.fill(workload.starts)
    used = memory_in_use(loaded) - before
    return summary(paced(system, workload, frames, suite.give_up_s)), used / sessions / MIB


@dataclass(frozen=True)
class Minute:
    """One minute of all sessions' time in the soak, and the memory behind it."""

    frames_per_s: float
    latency: Percentiles
    """Time from the push of a frame to its decision; the session's next frame follows at once."""
    refreshes: int
    memory_mib: float


def soak(loaded: LoadedModel, suite: EngineSuite, settings: StreamingSettings, context: int) -> Iterator[Minute]:
    """Minutes of every session's time as fast as they go; behind each, one session closes and another opens."""
    sessions, a_minute = suite.soak_sessions, int(60 * FPS)
    workload = Workload(suite, sessions, context, suite.soak_minutes * a_minute + 1)
    system = EngineSystem(loaded, workload, settings)
    system.fill(workload.starts)
    for minute in range(suite.soak_minutes):
        frames = range(minute * a_minute, (minute + 1) * a_minute)
        record = saturated(system, workload, frames, float("inf"))
        yield Minute(
            record.decided / record.seconds,
            Percentiles.of(record.latencies()[0]),
            record.refreshes,
            memory_in_use(loaded) / MIB,
        )
        system.replace(minute % sessions, workload.starts[minute % sessions], frames.stop)


def memory_in_use(loaded: LoadedModel) -> int:
    """Bytes that torch uses on the model's GPU, or else this process' resident set after trimming."""
    gc.collect()
    if loaded.model.device.type == "cuda":
        torch.cuda.empty_cache()
        return torch.cuda.memory_allocated(loaded.model.device)
    if sys.platform == "linux":
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    return psutil.Process().memory_info().rss


def to_json(record: Any) -> dict[str, Any]:
    """A dataclass as JSON, with the percentiles by name, and null for those over no frames."""

    def named(value: Any) -> Any:
        if hasattr(value, "_asdict"):
            return named(value._asdict())
        if isinstance(value, dict):
            return {name: named(each) for name, each in value.items()}
        return None if value != value else value

    return named(asdict(record))
