"""What Ray Train's controller holds of a run: where workers begin, and who notes their failures.

The controller imports this module before there is a worker. It is light, so that no run waits for the controller to
import what only workers use.
"""

import contextlib
from pathlib import Path
from typing import Any

import ray
from ray.train.v2.api.callback import UserCallback

from prospect.messages import first_line
from prospect.training.events import EventLog, read_events


def enter_worker(arguments: dict[str, Any]) -> dict[str, Any]:
    """What Ray Train calls in a worker process; everything that a worker needs is imported there."""
    from prospect.cluster.worker_main import worker_main

    return worker_main(ray.get(arguments["job"]), arguments["data"])


class FailureLog(UserCallback):
    """Notes in the run's events which workers failed; Ray's controller calls it, and restarts them."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "metrics.jsonl"

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        done = max((event["step"] + 1 for event, _ in read_events(self._file) if event["kind"] == "step"), default=0)
        # Whoever waits for a worker that died fails too, in its own code, and is not the reason.
        rank, failure = min(worker_exceptions.items(), key=lambda each: (not died(each[1]), each[0]))
        reason = f"worker {rank}: {first_line(failure)}"
        with contextlib.suppress(OSError):  # a disk that is full may be the failure: then the worker's error tells
            EventLog(self._file).write("failure", step=done, workers=len(worker_exceptions), reason=reason)


def died(failure: Exception) -> bool:
    """Whether it is the end of a worker's process, and no error of its code."""
    return isinstance(getattr(failure, "health_check_failure", failure), ray.exceptions.RayError)
