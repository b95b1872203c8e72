"""What a server takes over time: memory, file handles, its store, and how long it takes to answer."""

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import psutil

from prospect.benchmarks.journal import StageResult
from prospect.benchmarks.serve.servers import Server

MEASURES = {"memory_mib": "memory, MiB", "files": "file handles", "threads": "threads"}
"""Of each part of a server, by name; with what they are called."""


def sample(server: Server, store: Path, began: float) -> dict[str, Any]:
    """What a server takes now, by its parts; the mean of a part's processes."""
    parts = {part: found for part, processes in server.roles().items() if (found := _of(processes))}
    asked = time.perf_counter()
    try:
        answered = httpx.get(f"{server.url}/healthz", timeout=30, trust_env=False).status_code
    except httpx.HTTPError:
        answered = 0
    return {
        "at_s": time.monotonic() - began,
        "parts": parts,
        "store_mib": sum(file.stat().st_size for file in store.parent.glob(f"{store.name}*")) / 2**20,
        "health": answered,
        "health_ms": 1000 * (time.perf_counter() - asked),
    }


def _of(processes: Sequence[psutil.Process]) -> dict[str, float]:
    """The means over processes; empty where none is left."""
    found = []
    for process in processes:
        with suppress(psutil.Error):  # it has just ended
            memory = process.memory_info().rss / 2**20
            found.append({"memory_mib": memory, "files": process.num_fds(), "threads": process.num_threads()})
    return {name: sum(each[name] for each in found) / len(found) for name in MEASURES} if found else {}


def plot(rows: Sequence[StageResult], file: Path) -> None:
    """Draw the samples of stage `soak`, a line for each part, and what was killed when."""
    from matplotlib.figure import Figure  # takes a second to import

    samples = [row for row in rows if "parts" in row]
    minutes = [row["at_s"] / 60 for row in samples]
    kills = [(row["at_s"] / 60, row["killed"]) for row in rows if "killed" in row]
    panels = [*MEASURES.items(), ("store_mib", "store, MiB"), ("health_ms", "/healthz, ms")]
    figure = Figure(figsize=(7, 1.6 * len(panels)), layout="constrained")
    axes = figure.subplots(len(panels), 1, sharex=True)
    for axis, (name, label) in zip(axes, panels, strict=True):
        if name in MEASURES:
            for part in ("gateway", "engine", "proxy"):
                axis.plot(minutes, [_value(row["parts"], part, name) for row in samples], label=part)
        else:
            axis.plot(minutes, [row[name] for row in samples], color="black")
        for at, _ in kills:
            axis.axvline(at, color="tab:red", linewidth=0.5)
        axis.set_ylabel(label)
        axis.set_ylim(bottom=0)
    axes[0].legend(loc="lower right")
    axes[-1].set_xlabel("minutes; red: a process is killed")
    figure.savefig(file, dpi=120, metadata={"Software": None})


def _value(parts: Mapping[str, Mapping[str, float]], part: str, name: str) -> float:
    return parts.get(part, {}).get(name, float("nan"))
