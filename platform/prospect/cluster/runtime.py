"""Start Ray, or join the cluster that a submitted job runs on, and disconnect at the end.

Ray is imported on first use, so that a job that stops early never waits for it.
"""

import atexit
import logging
import os
import sys
import threading
import warnings
from dataclasses import dataclass
from typing import Any

_QUIET = ("ray.data", "ray.train", "ray.serve", "ray.tune")


def connect(num_cpus: int | None = None) -> None:
    """Connect to Ray, unless connected.

    Ray's progress output is switched off, because the jobs print their own; its errors stay.

    Args:
        num_cpus: CPUs of a Ray that is started here, for jobs that share the machine; default: all of them.
    """
    import ray
    from ray.data import DataContext
    from ray.util.annotations import RayDeprecationWarning

    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=RayDeprecationWarning)
    if not ray.is_initialized():
        # Ray's C++ core prints an error line for every actor pool; what fails reaches us as an exception.
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        joins = "RAY_ADDRESS" in os.environ
        # Without "local", Ray would join whatever cluster was last started on this machine, or its remains.
        where: dict[str, Any] = {} if joins else {"address": "local", "include_dashboard": False, "num_cpus": num_cpus}
        ray.init(log_to_driver=False, logging_level=logging.ERROR, **where)
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.enable_operator_progress_bars = False
    context.print_on_execution_start = False
    atexit.unregister(disconnect)  # register once, however often a job connects
    atexit.register(disconnect)  # handlers run in reverse order: this one before Ray's


@dataclass(frozen=True)
class ClusterSize:
    """CPUs and GPUs of all nodes, whether busy or idle."""

    cpus: float
    gpus: float


def cluster_size() -> ClusterSize:
    """The CPUs and GPUs that the cluster has now; needs `connect`."""
    import ray

    resources = ray.cluster_resources()
    return ClusterSize(resources.get("CPU", 0.0), resources.get("GPU", 0.0))


def disconnect() -> None:
    """Stop Ray Data's executors, then disconnect from Ray; does nothing where Ray is not imported.

    A job that stops in the middle of a dataset leaves an executor thread running. If that thread uses Ray while it
    shuts down, Ray ends the process silently with status 1.
    """
    if "ray" not in sys.modules:
        return
    import ray
    from ray.data._internal.execution.streaming_executor import StreamingExecutor

    for thread in threading.enumerate():
        if isinstance(thread, StreamingExecutor):
            thread.shutdown(force=True)
            thread.join()
    ray.shutdown()
