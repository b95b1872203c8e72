"""Start Ray, or join the cluster that a submitted job runs on, and disconnect at the end.

Ray is imported on first use, so that a job that stops early never waits for it. What a job asks of the cluster is
decided in `prospect.cluster.gpus`.
"""

import atexit
import logging
import os
import re
import socket
import sys
import threading
import warnings
from typing import Any

from prospect.errors import ConfigError

_QUIET = ("ray.data", "ray.train", "ray.serve", "ray.tune")
_ANSWERS_WITHIN_S = 5.0
_HOST_AND_PORT = re.compile(r"(?:ray://)?\[?([^/\]]+?)\]?:(\d+)")


def connect(num_cpus: int | None = None) -> None:
    """Connect to Ray, unless connected.

    Ray's progress output is switched off, because the jobs print their own; its errors stay.

    Args:
        num_cpus: CPUs of a Ray that is started here, for jobs that share the machine; default: all of them.

    Raises:
        ConfigError: nothing listens at `RAY_ADDRESS`.
    """
    require_listener(os.environ.get("RAY_ADDRESS", ""), "RAY_ADDRESS")
    import ray
    from ray.data import DataContext
    from ray.util.annotations import RayDeprecationWarning

    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=RayDeprecationWarning)
    if not ray.is_initialized():
        # Ray's C++ core prints an error line for every actor pool; what fails reaches us as an exception.
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        # Without "local", Ray would join whatever cluster was last started on this machine, or its remains.
        own: dict[str, Any] = {"address": "local", "include_dashboard": False, "num_cpus": num_cpus}
        keep_to_loopback(os.environ.get("RAY_ADDRESS", "local"))
        ray.init(log_to_driver=False, logging_level=logging.ERROR, **({} if "RAY_ADDRESS" in os.environ else own))
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.enable_operator_progress_bars = False
    context.print_on_execution_start = False
    atexit.unregister(disconnect)  # register once, however often a job connects
    atexit.register(disconnect)  # handlers run in reverse order: this one before Ray's


def require_listener(address: str, field: str) -> None:
    """Check that something listens at a cluster's address: Ray itself would wait for minutes and end in stack traces.

    Args:
        address: `HOST:PORT` or `ray://HOST:PORT`; any other, such as `auto`, is left to Ray.
        field: what gave the address.

    Raises:
        ConfigError: nothing does.
    """
    if (found := _HOST_AND_PORT.fullmatch(address)) is None:
        return
    try:
        socket.create_connection((found[1], int(found[2])), _ANSWERS_WITHIN_S).close()
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"`{field}` ({address}) does not answer ({error}): start a cluster there, as `make up` does, or unset it",
            field=field,
        ) from error


def keep_to_loopback(address: str | None) -> None:
    """Have the Ray that this process starts listen on loopback alone, unless the environment says otherwise.

    Without it a dozen ports of Ray listen on all of the machine's addresses. A Ray that was started so is joined so.

    Args:
        address: as for `ray.init`.
    """
    from ray._private import ray_constants, services

    if ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR in os.environ:
        return
    try:
        given: Any = address  # None too, whatever its annotation says
        found = None if address == "local" else services.get_ray_address_from_environment(given, None)
    except ConnectionError:  # `auto`, where there is none: `ray.init` says so
        return
    if found in (None, "local") or _is_on_loopback_alone(found, services.get_node_ip_address()):
        os.environ[ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR] = "0"  # for the processes that it starts
        ray_constants.ENABLE_RAY_CLUSTER = False  # and for this one, which has read the variable already


def _is_on_loopback_alone(address: str, node: str) -> bool:
    """Whether a Ray on this machine's loopback does not answer on the machine's own address."""
    found = _HOST_AND_PORT.fullmatch(address)
    if found is None or found[1] not in ("127.0.0.1", "localhost", "::1"):
        return False
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((node, int(found[2]))) != 0


def owns_ray() -> bool:
    """Whether this process has started the Ray that it is connected to, which has this machine and ends with it."""
    from ray._private import worker

    return worker._global_node is not None and worker._global_node.is_head()


def reserved_device() -> str:
    """The device that Ray has reserved for this worker: `cuda` or `cpu`; `auto` in a process without Ray.

    Raises:
        ConfigError: torch does not find the reserved GPU.
    """
    import ray

    if not ray.is_initialized():  # asked for its GPUs, Ray would start itself
        return "auto"
    if not ray.get_gpu_ids():
        return "cpu"
    from prospect.devices import has_gpu, why_no_gpu

    if not has_gpu():
        raise ConfigError(
            f"node {ray.util.get_node_ip_address()} has a GPU for Ray, but torch finds none there ({why_no_gpu()}): "
            "mend the node, start its Ray with --num-gpus=0, or give cluster.gpus=0",
            field="cluster.gpus",
        )
    return "cuda"


def engine_threads(engines: int = 1) -> int:
    """Threads of torch in each of a node's `engines`: a share of its cores, one of which is left to other processes."""
    return max(1, len(os.sched_getaffinity(0)) // engines - 1)


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
