"""The bare StreamingEngine in a process of its own, called without sockets and event loops."""

import os
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from prospect.benchmarks.engine.load import Happening, LoadRecord, paced
from prospect.benchmarks.serve.footage import Footage, ServedWorkload
from prospect.benchmarks.serve.model import FOOTAGE
from prospect.benchmarks.serve.processes import pinned_thread
from prospect.benchmarks.serve.sessions import session_spec
from prospect.benchmarks.serve.settings import ServeSuite
from prospect.dialogue.prompt import ContextSettings
from prospect.errors import ProspectError
from prospect.model.checkpoint import LoadedModel, load_model
from prospect.streaming.engine import StreamingEngine
from prospect.streaming.settings import StreamingSettings
from prospect.streaming.types import Decision, Failed, Refreshed, SessionSpec, TextPiece

WARM_UP = 2
"""Frames of every session before frame 0."""


class BareEngine:
    """As `prospect.benchmarks.engine.load.Driven`; every session is new."""

    def __init__(self, engine: StreamingEngine, spec: SessionSpec, footage: Footage) -> None:
        self._engine, self._spec, self._footage = engine, spec, footage

    def fill(self, lengths: Sequence[int]) -> None:
        """Open one session for each of `lengths`, whose values do not matter, and have its first frames decided."""
        for session in range(len(lengths)):
            self._engine.open(str(session), self._spec)
            for frame in range(WARM_UP):
                self._engine.push_frame(str(session), self._footage.embeddings[frame])
        self.clear()

    def push(self, session: int, frame: int, features: np.ndarray, speaks: bool) -> None:
        """Queue a frame."""
        self._engine.push_frame(str(session), features)

    def busy(self) -> bool:
        return self._engine.has_work()

    def step(self) -> list[Happening]:
        """One forward pass."""
        happenings = []
        for session_id, event in self._engine.step():
            session, frame = int(session_id), getattr(event, "frame", 0) - WARM_UP
            match event:
                case TextPiece():
                    happenings.append(Happening(session, frame, "text"))
                case Decision():
                    spoke = event.utterance is not None
                    happenings.append(Happening(session, frame, "decided", event.fast, spoke))
                case Refreshed():
                    happenings.append(Happening(session, frame, "refreshed"))
                case Failed():
                    raise ProspectError(f"benchmark: session {session_id} failed: {event.reason}")
        return happenings

    def clear(self) -> None:
        """Decide what waits."""
        while self.busy():
            self._engine.step()

    def close(self) -> None:
        for session_id in self._engine.session_ids:
            self._engine.close(session_id)


# In the engine's process -----------------------------------------------------------------------------------------

_loaded: LoadedModel
_footage: Footage
_engine: StreamingEngine


def load(folder: Path, streaming: StreamingSettings, threads: int) -> int:
    """Load the model and make the engine; returns the process' id."""
    global _loaded, _footage, _engine
    torch.set_num_threads(threads)
    _loaded = load_model(folder)
    _footage = Footage.load(folder / FOOTAGE)
    context = ContextSettings.of_model(_loaded.manifest.get("context", {}))
    _engine = StreamingEngine(_loaded, context, streaming)
    return os.getpid()


def pace(suite: ServeSuite, sessions: int, frames: int, start_at: float | None = None) -> tuple[LoadRecord, float]:
    """Push frames when they are due; returns their times and the CPU seconds that it took. `start_at`: Unix time."""
    workload = ServedWorkload(_footage, suite.schedule(), sessions, frames)
    system = BareEngine(_engine, session_spec(suite), _footage)
    system.fill(workload.starts)
    if start_at is not None:
        time.sleep(max(0.0, start_at - time.time()))
    before = time.process_time()
    record = paced(system, workload, range(frames), suite.give_up_s)
    cpu = time.process_time() - before
    system.close()
    return record, cpu


def saturate(suite: ServeSuite, in_flight: int, cores: set[int] | None) -> tuple[int, float, float]:
    """Keep so many frames of each session waiting; returns decisions, seconds and CPU seconds."""
    frames = 1 << 14
    workload = ServedWorkload(_footage, suite.schedule(), suite.saturated_sessions, frames)
    system = BareEngine(_engine, session_spec(suite), _footage)
    system.fill(workload.starts)
    with pinned_thread(cores):
        result = _saturate(system, workload, in_flight, suite.saturated_s)
    system.close()
    return result


def _saturate(system: BareEngine, workload: ServedWorkload, in_flight: int, seconds: float) -> tuple[int, float, float]:
    pushed = [0] * workload.sessions

    def push(session: int) -> None:
        frame = pushed[session]
        pushed[session] += 1
        system.push(session, frame, workload.features(session, frame), bool(workload.speaks[session, frame]))

    for session in range(workload.sessions):
        for _ in range(in_flight):
            push(session)
    decided, before, began = 0, time.process_time(), time.perf_counter()
    while (spent := time.perf_counter() - began) < seconds:
        for each in system.step():
            if each.kind == "decided":
                decided += 1
                push(each.session)
    cpu = time.process_time() - before
    system.clear()
    return decided, spent, cpu
