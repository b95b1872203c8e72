"""What Ray Train's controller process imports: the workers' entry point and the log of their failures.

Light on purpose: the controller starts no worker before it has imported this module.
"""

import contextlib
from pathlib import Path
from typing import Any

import ray
from ray.train.v2.api.callback import UserCallback

from prospect.errors import ProspectError
from prospect.messages import first_line
from prospect.training.events import EventLog, read_events


def run_worker(arguments: dict[str, Any]) -> dict[str, Any]:
    """Entry point of a worker process, where Ray Train calls it; what only workers need is imported here."""
    from prospect.cluster.worker_main import worker_main

    return worker_main(ray.get(arguments["job"]), ray.get(arguments["data"]))


class FailureLog(UserCallback):
    """Writes to the run's events which workers failed, before Ray's controller restarts them."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "metrics.jsonl"

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        done = max((event["step"] + 1 for event, _ in read_events(self._file) if event["kind"] == "step"), default=0)
        # Workers that wait for another fail in their own code: the one that died, or can say why, is the reason.
        rank, failure = min(worker_exceptions.items(), key=lambda each: (not _explains(each[1]), each[0]))
        reason = f"worker {rank}: {first_line(failure)}"
        with contextlib.suppress(OSError):  # a full disk may be the failure, which the worker's error then names
            EventLog(self._file).write("failure", step=done, workers=len(worker_exceptions), reason=reason)


def _explains(failure: Exception) -> bool:
    return is_process_death(failure) or isinstance(failure, ProspectError)


def is_process_death(failure: Exception) -> bool:
    """Whether a worker's process died, rather than its code raising."""
    return isinstance(getattr(failure, "health_check_failure", failure), ray.exceptions.RayError)
