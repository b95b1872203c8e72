"""Peak memory of a process and its descendants."""

import threading
from types import TracebackType
from typing import Self

import psutil

SAMPLE_S = 2.0


class PeakMemory:
    """Samples the proportional set size of the process tree: pages that processes share count once.

    Attributes:
        num_bytes: the largest sum seen so far.
    """

    def __init__(self) -> None:
        self.num_bytes = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        root = psutil.Process()
        while not self._done.wait(SAMPLE_S):
            self.num_bytes = max(self.num_bytes, sum(map(_proportional, [root, *root.children(recursive=True)])))


def _proportional(process: psutil.Process) -> int:
    """0 for a process that has ended meanwhile."""
    try:
        return int(process.memory_full_info().pss)
    except (psutil.Error, OSError):
        return 0
