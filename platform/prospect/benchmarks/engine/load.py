"""The load of the engine benchmark: what every session does and when, and how a system is driven and timed.

Arrivals are an open loop: frame k of a session is due at (k + phase) / 2 seconds whatever the system does, and its
latency counts from then, so that a system that falls behind cannot hide it. In saturation every session has its next
frame waiting as soon as the last one is decided.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np

from prospect.benchmarks.engine.model import frame_features
from prospect.benchmarks.engine.settings import EngineSuite
from prospect.dialogue.timeline import FPS
from prospect.errors import ProspectError

REBUILT_SHARE = 0.25
"""A rebuilt context's text, of a full session; as `max_context_tokens` is of `max_seq_len` by default."""
TAIL_FRAMES = 10
_NOISES = 64
"""Number of different frames, which repeat."""
BLOCK_TOKENS = 2
"""Tokens of an utterance besides its text: prefix and stop."""


@dataclass(frozen=True)
class Happening:
    """What a system says of one frame of one session.

    Attributes:
        kind: `text`: the utterance's first token; `decided`: the frame is done with, its utterance included;
            `refreshed`: the context was rebuilt before it.
        fast: decided without `lm_head`.
    """

    session: int
    frame: int
    kind: Literal["text", "decided", "refreshed"]
    fast: bool = False
    spoke: bool = False


class Driven(Protocol):
    """A way of serving sessions. Numbers of sessions and frames count from 0."""

    def fill(self, lengths: Sequence[int]) -> None:
        """Opens one session for each of `lengths`, in tokens, ready for its frame 0."""

    def push(self, session: int, frame: int, features: np.ndarray, speaks: bool) -> None:
        """Queue a frame [1, D]."""

    def busy(self) -> bool:
        """Whether `step` has something to do."""

    def step(self) -> list[Happening]:
        """One forward pass."""

    def clear(self) -> None:
        """Drop waiting frames."""


class Workload:
    """Frames, schedule of utterances and arrivals of all sessions; the same for every system.

    Args:
        suite: rates, sizes and seed.
        sessions: S.
        context: tokens of a full session, L.
        frames: of every session in all measurements together, F.
    """

    def __init__(self, suite: EngineSuite, sessions: int, context: int, frames: int) -> None:
        self.suite, self.sessions, self.context, self.frames = suite, sessions, context, frames
        rng = np.random.default_rng([suite.seed, sessions, context])
        self.speaks = np.stack([_schedule(rng, frames, suite.speak_rate) for _ in range(sessions)])
        self.phases = rng.permutation(sessions) / sessions
        self.starts = [int(length) for length in self._starts(rng)]
        self._noise = rng.standard_normal((_NOISES, suite.vision_dim), np.float32)

    @property
    def tokens_per_frame(self) -> float:
        """Tokens that a frame adds to a session on average."""
        return 1 + self.suite.speak_rate * (self.suite.utterance_tokens + BLOCK_TOKENS)

    @property
    def rebuilt(self) -> int:
        """Tokens of a rebuilt context's text."""
        return int(REBUILT_SHARE * self.context)

    def reserve(self) -> int:
        """Tokens below the limit from which on a session is not started: its next frame and what is said at it."""
        return 16 + TAIL_FRAMES + self.suite.utterance_tokens

    def features(self, session: int, frame: int) -> np.ndarray:
        """[1, D] of a frame that speaks if the schedule says so."""
        return frame_features(self._noise[(session + frame) % _NOISES], bool(self.speaks[session, frame]))

    def arrivals(self, frames: range) -> list[tuple[float, int, int]]:
        """(seconds at which it is due, session, frame), in order of time."""
        return sorted(
            (float(k + self.phases[session]) / FPS, session, frame)
            for session in range(self.sessions)
            for k, frame in enumerate(frames)
        )

    def _starts(self, rng: np.random.Generator) -> np.ndarray:
        """Lengths at frame 0, all within one measurement of the limit.

        In the long run a session is equally often at every distance from its next refresh. As many as that lie
        within the measurement's reach start at their distance, all others start that reach away.
        """
        top = self.context - self.reserve()
        distance = (top - self.rebuilt) * (rng.permutation(self.sessions) + 0.5) / self.sessions
        return np.maximum(top - np.minimum(distance, self.frames * self.tokens_per_frame), self.rebuilt + TAIL_FRAMES)


def _schedule(rng: np.random.Generator, frames: int, rate: float) -> np.ndarray:
    """Which of a session's frames speak: gaps drawn evenly between half and one and a half of 1 / rate."""
    speaks = np.zeros(frames, bool)
    if rate == 0:
        return speaks
    at = rng.uniform(0, 1 / rate)
    while at < frames:
        speaks[int(at)] = True
        at += max(2.0, rng.uniform(0.5 / rate, 1.5 / rate))
    return speaks


@dataclass
class LoadRecord:
    """Times at which every frame of a measurement was due, first answered and finished.

    Attributes:
        due, first, done: seconds [S, F]; NaN where it did not happen. `first` is the decision of a silent frame and
            the first token of an utterance.
        spoke, fast: [S, F].
        seconds: how long it took.
        decided: frames within `seconds`.
        gave_up: it ended because a frame waited too long; open frames count with the age they had reached.
    """

    frames: range
    due: np.ndarray
    first: np.ndarray
    done: np.ndarray
    spoke: np.ndarray
    fast: np.ndarray
    seconds: float = 0.0
    decided: int = 0
    refreshes: int = 0
    gave_up: bool = False
    steps: list[float] = field(default_factory=list)
    """Seconds of each step."""

    @classmethod
    def empty(cls, sessions: int, frames: range) -> "LoadRecord":
        shape = (sessions, len(frames))
        due, first, done = (np.full(shape, np.nan) for _ in range(3))
        return cls(frames, due, first, done, spoke=np.zeros(shape, bool), fast=np.zeros(shape, bool))

    def take(self, happenings: Sequence[Happening], now: float) -> list[Happening]:
        """Notes what happened by `now`; returns the frames decided."""
        decided = []
        for each in happenings:
            if each.kind == "refreshed":
                self.refreshes += 1
                continue
            at = each.session, each.frame - self.frames.start
            if np.isnan(self.first[at]):
                self.first[at] = now
            if each.kind == "decided":
                self.done[at], self.spoke[at], self.fast[at] = now, each.spoke, each.fast
                decided.append(each)
        return decided

    def latencies(self) -> tuple[np.ndarray, np.ndarray]:
        """Seconds to the decision of every frame that was due, and which of them had no own generation pending.

        A generation is pending from its first token until it is done with.
        """
        waited = np.where(np.isnan(self.first), self.seconds - self.due, self.first - self.due)
        pending = np.zeros(self.due.shape, bool)
        ended = np.where(np.isnan(self.done), np.inf, self.done)
        talks = ~np.isnan(self.first) & (self.spoke | np.isnan(self.done))
        for session, frame in zip(*np.nonzero(talks), strict=True):
            later = self.due[session, frame + 1 :]
            pending[session, frame + 1 :] |= (later >= self.first[session, frame]) & (later < ended[session, frame])
        known = ~np.isnan(self.due) & (self.due <= self.seconds)
        return waited[known], ~pending[known]

    def first_tokens(self) -> np.ndarray:
        """Seconds from when a frame was due to the first token of its utterance."""
        return (self.first - self.due)[self.spoke]


def paced(system: Driven, workload: Workload, frames: range, give_up_s: float) -> LoadRecord:
    """Push frames at their due times, until all are decided or one has waited `give_up_s`."""
    record, arrivals = LoadRecord.empty(workload.sessions, frames), workload.arrivals(frames)
    pushed = oldest = 0
    began = time.perf_counter()
    while oldest < len(arrivals):
        now = time.perf_counter() - began
        while pushed < len(arrivals) and arrivals[pushed][0] <= now:
            due, session, frame = arrivals[pushed]
            record.due[session, frame - frames.start] = due
            system.push(session, frame, workload.features(session, frame), bool(workload.speaks[session, frame]))
            pushed += 1
        if system.busy():
            _step(system, record, began)
        elif pushed < len(arrivals):
            time.sleep(max(0.0, arrivals[pushed][0] - now))
        while oldest < pushed and not np.isnan(record.done[arrivals[oldest][1], arrivals[oldest][2] - frames.start]):
            oldest += 1
        if oldest < pushed and now - arrivals[oldest][0] > give_up_s:
            record.gave_up = True
            break
    record.seconds = time.perf_counter() - began
    record.decided = int((~np.isnan(record.done)).sum())
    system.clear()
    _check(record, workload)
    return record


def saturated(
    system: Driven, workload: Workload, frames: range, seconds: float, fast_enough: float = float("inf")
) -> LoadRecord:
    """Push every session's next frame as soon as the last is decided, until all are.

    After `seconds` it ends for a system that decides fewer than `fast_enough` frames/s.
    """
    record = LoadRecord.empty(workload.sessions, frames)
    began = time.perf_counter()

    def push(session: int, frame: int) -> None:
        record.due[session, frame - frames.start] = time.perf_counter() - began
        system.push(session, frame, workload.features(session, frame), bool(workload.speaks[session, frame]))

    for session in range(workload.sessions):
        push(session, frames.start)
    while system.busy() and (record.seconds < seconds or record.decided >= fast_enough * record.seconds):
        decided = _step(system, record, began)
        record.seconds = time.perf_counter() - began
        record.decided += len(decided)
        for each in decided:
            if each.frame + 1 < frames.stop:
                push(each.session, each.frame + 1)
    finish(system, record, began)
    _check(record, workload)
    return record


def finish(system: Driven, record: LoadRecord, began: float) -> None:
    """Finish pending work, so that the next measurement starts with empty queues."""
    while system.busy():
        _step(system, record, began)
    system.clear()


def _step(system: Driven, record: LoadRecord, began: float) -> list[Happening]:
    before = time.perf_counter()
    happenings = system.step()
    after = time.perf_counter()
    record.steps.append(after - before)
    return record.take(happenings, after - began)


def _check(record: LoadRecord, workload: Workload) -> None:
    """Raise unless the system spoke as scheduled: the numbers would belong to another speak rate."""
    done = ~np.isnan(record.done)
    planned = workload.speaks[:, record.frames.start : record.frames.stop]
    if (wrong := (record.spoke != planned) & done).any():
        raise ProspectError(f"benchmark: {int(wrong.sum())} of {int(done.sum())} frames did not follow the schedule")
