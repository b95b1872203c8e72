"""CPU time of processes by their part in serving, and which cores they may use."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

Roles = Mapping[str, Sequence[psutil.Process]]
"""Processes by part: `proxy`, `gateway`, `encoder`, `engine`, `host`, `ray`."""

_PARTS = {
    "ray::ServeReplica:prospect:Gateway": "gateway",
    "ray::ServeReplica:prospect:Encoder": "encoder",
    "ray::ServeReplica:prospect:Engine": "engine",
    "ray::ProxyActor": "proxy",
}
"""Part of a Ray process, by how its title begins; all others belong to Ray itself."""


class CpuMeter:
    """CPU seconds of each part since the last `read`."""

    def __init__(self, roles: Roles) -> None:
        self._roles = roles
        self._last = self._now()

    def read(self) -> dict[str, float]:
        last, self._last = self._last, self._now()
        return {part: seconds - last[part] for part, seconds in self._last.items()}

    def _now(self) -> dict[str, float]:
        return {part: sum(map(_cpu_seconds, processes)) for part, processes in self._roles.items()}


def _cpu_seconds(process: psutil.Process) -> float:
    """0 for a process that has ended."""
    try:
        times = process.cpu_times()
        return times.user + times.system
    except psutil.Error:
        return 0.0


def ray_processes() -> dict[str, list[psutil.Process]]:
    """The processes of the Ray that this process has started, by part."""
    found: dict[str, list[psutil.Process]] = {part: [] for part in (*_PARTS.values(), "ray")}
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            command = process.cmdline()
            if not any(word.startswith("ray::") or "/ray/" in word for word in command):
                continue
            found[next((part for title, part in _PARTS.items() if command[0].startswith(title)), "ray")].append(process)
    return found


@contextmanager
def pinned_thread(cores: set[int] | None) -> Iterator[None]:
    """Keep the calling thread on some cores; None: leave it."""
    before = os.sched_getaffinity(0)
    if cores is not None:
        os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextmanager
def pinned(processes: Iterable[psutil.Process], cores: set[int]) -> Iterator[None]:
    """Keep all threads of processes on some cores; they may use all of this process' cores afterwards."""
    processes = list(processes)
    everywhere = os.sched_getaffinity(0)
    _each_thread(processes, lambda thread: os.sched_setaffinity(thread, cores))
    try:
        yield
    finally:
        _each_thread(processes, lambda thread: os.sched_setaffinity(thread, everywhere))


def _each_thread(processes: Iterable[psutil.Process], apply: Callable[[int], None]) -> None:
    for process in processes:
        with suppress(OSError):  # it has ended
            for thread in Path(f"/proc/{process.pid}/task").iterdir():
                with suppress(OSError):
                    apply(int(thread.name))


def two_cores() -> tuple[set[int], set[int]] | None:
    """One core for the engine and one for everything else; None where there are fewer, or none can be chosen."""
    if not hasattr(os, "sched_setaffinity") or len(cores := sorted(os.sched_getaffinity(0))) < 2:
        return None
    return {cores[0]}, {cores[1]}
