"""One measurement of one system: rows of JSON."""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from prospect.benchmarks.journal import StageResult
from prospect.benchmarks.serve import bare, client
from prospect.benchmarks.serve.bench import Bench
from prospect.benchmarks.serve.footage import ServedWorkload
from prospect.benchmarks.serve.processes import CpuMeter
from prospect.benchmarks.serve.record import paced_row, to_json, to_record
from prospect.benchmarks.serve.servers import Server
from prospect.benchmarks.serve.settings import Kind
from prospect.dialogue.timeline import FPS
from prospect.percentiles import Percentiles

SATURATED_FRAMES = 4096
"""Of a session at most."""


def due_times(workload: ServedWorkload, shift: float = 0.0) -> np.ndarray:
    """[S, F]: seconds at which frames are due; sessions spread over the half second, `shift` of it later."""
    return (np.arange(workload.frames) + workload.phases[:, None] + shift) / FPS


def pace_bare(bench: Bench, sessions: int) -> StageResult:
    """The bare engine with frames at 2/s a session."""
    frames = bench.frames(sessions)
    record, cpu = bench.bare(bare.pace, bench.suite, sessions, frames)
    speaks = bench.workload(sessions, frames).speaks
    return paced_row(record, speaks) | {"cpu_ms": {"engine": 1000 * cpu / speaks.size}, "load": load_average()}


def pace_server(
    bench: Bench, server: Server, kind: Kind, sessions: int, speak_rate: float | None = None
) -> StageResult:
    """Sessions over sockets with frames at 2/s each."""
    workload = bench.workload(sessions, bench.frames(sessions), speak_rate)
    bench.open(bench.group(server, kind, workload))
    due = due_times(workload)
    meter = CpuMeter(server.roles())
    try:
        [heard] = bench.client(client.pace, [due], bench.suite.give_up_s)
        cpu = meter.read()
    finally:
        bench.client(client.close_sessions)
    return heard_row(heard, due, workload) | {"cpu_ms": cpu_ms(cpu, heard), "load": load_average()}


def heard_row(heard: dict[str, Any], due: np.ndarray, workload: ServedWorkload) -> StageResult:
    """What a paced client heard."""
    late = heard["sent"] - due
    return paced_row(to_record(heard, workload.speaks), workload.speaks) | {
        "dropped": int((~np.isnan(heard["dropped"])).sum()),
        "client_late": to_json(Percentiles.of(late[~np.isnan(late)])),
    }


def cpu_ms(seconds: Mapping[str, float], heard: dict[str, Any]) -> dict[str, float]:
    """CPU milliseconds a decided frame, by part, the client's among them."""
    decided = max(1, int((~np.isnan(heard["done"])).sum()))
    return {part: round(1000 * spent / decided, 3) for part, spent in {**seconds, "client": heard["cpu_s"]}.items()}


def saturate_bare(bench: Bench, in_flight: int, cores: set[int] | None) -> StageResult:
    decided, seconds, cpu = bench.bare(bare.saturate, bench.suite, in_flight, cores)
    return {"per_s": decided / seconds, "decided": decided, "cpu_ms": {"engine": 1000 * cpu / decided}}


def saturate_server(bench: Bench, server: Server, kind: Kind, in_flight: int) -> StageResult:
    """Sessions over sockets, each with so many frames under way."""
    suite = bench.suite
    workload = bench.workload(suite.saturated_sessions, SATURATED_FRAMES)
    bench.open(bench.group(server, kind, workload))
    meter = CpuMeter(server.roles())
    try:
        [heard] = bench.client(client.saturate, in_flight, suite.saturated_s, suite.give_up_s)
        cpu = meter.read()
    finally:
        bench.client(client.close_sessions)
    decided = int((heard["done"] <= suite.saturated_s).sum())
    dropped = int((~np.isnan(heard["dropped"])).sum())
    row = {"per_s": decided / suite.saturated_s, "decided": decided, "dropped": dropped}
    return row | {"cpu_ms": cpu_ms(cpu, heard)}


def load_average() -> float:
    return round(os.getloadavg()[0], 2)
