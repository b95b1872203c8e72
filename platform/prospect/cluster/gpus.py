"""GPUs that a job asks Ray for.

A cluster that grows may have no GPU when a job starts. Its job asks for GPUs all the same if the autoscaler can start
nodes that have some; the request is what makes it start them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prospect.cluster.common import ReportLine
from prospect.cluster.runtime import connect, owns_ray, reserved_device
from prospect.config.schema import ClusterSettings
from prospect.errors import ConfigError

LAUNCHER_FILE = Path("~/ray_bootstrap_config.yaml")
"""Where Ray's cluster launcher leaves the description of a cluster, on its head node."""

_GROUP_LABEL = "ray.io/node-group"
"""Label of a node that an autoscaler or KubeRay has started."""


@dataclass(frozen=True)
class Capacity:
    """CPUs and GPUs of nodes, whether busy or idle."""

    cpus: float = 0.0
    gpus: float = 0.0

    def __add__(self, other: "Capacity") -> "Capacity":
        return Capacity(self.cpus + other.cpus, self.gpus + other.gpus)


@dataclass(frozen=True)
class Allotment:
    """What a job may ask of the cluster."""

    cpus: float
    """CPUs of the nodes that are there, and of those that the autoscaler may start for the GPUs."""
    gpus: int
    """GPUs that the job may ask for; 0: it runs on CPUs."""
    final: bool = False
    """Whether the cluster can never have more."""


def allot(settings: ClusterSettings, job: str, report: ReportLine) -> Allotment:
    """Connect to Ray, and decide how many GPUs a job may ask for; report where it runs on CPUs, or has to wait.

    Args:
        settings: section `cluster`.
        job: name of the job, for its lines.
        report: takes one line of progress at a time.

    Raises:
        ConfigError: `cluster.gpus` is more than the cluster can ever have.
    """
    connect()
    now = present()
    most = largest(now)
    known = most or now
    if settings.gpus != "auto" and settings.gpus > known.gpus and not _grows_unseen(most):
        raise ConfigError(
            f"`cluster.gpus` ({settings.gpus}) is more than {_where()} can have: {_describe(now, most)}; lower it, or "
            "give cluster.gpus=auto",
            field="cluster.gpus",
        )
    gpus = int(known.gpus) if settings.gpus == "auto" else settings.gpus
    if not gpus:
        why = "cluster.gpus=0" if settings.gpus == 0 else _describe(now, most)
        report(f"{job:6} RUNS ON CPUs: {why}")
    elif gpus > now.gpus:
        report(f"{job:6} asks for up to {gpus} GPUs: {_describe(now, most)}")
    return Allotment(known.cpus if gpus else now.cpus, gpus, final=most is not None)


def probe_gpu() -> None:
    """Wait until a node with a free GPU is there, and have torch find the GPU.

    Raises:
        ConfigError: torch finds none on that node.
    """
    import ray

    probe = ray.remote(num_cpus=0, num_gpus=1, max_retries=0)(reserved_device)
    try:
        ray.get(probe.remote())
    except ConfigError as error:  # Ray's, with the worker's own as its cause
        raise getattr(error, "cause", error) from None


def present() -> Capacity:
    """What the cluster's nodes have now; needs `connect`."""
    import ray

    resources = ray.cluster_resources()
    return Capacity(resources.get("CPU", 0.0), resources.get("GPU", 0.0))


def largest(now: Capacity) -> Capacity | None:
    """What the cluster can come to have; None where its autoscaler, if there is one, has not said."""
    import ray

    if owns_ray():
        return now
    reported = ray._private.state.state.get_max_resources_from_cluster_config()
    if reported:
        return Capacity(max(now.cpus, reported.get("CPU", 0)), max(now.gpus, reported.get("GPU", 0)))
    file = LAUNCHER_FILE.expanduser()
    if not file.is_file():
        return None
    import yaml

    described = launchable(yaml.safe_load(file.read_text()))
    return Capacity(max(now.cpus, described.cpus), max(now.gpus, described.gpus))


def launchable(cluster: Mapping[str, Any]) -> Capacity:
    """CPUs and GPUs of a launcher's cluster when all its workers run, those with most GPUs first.

    Args:
        cluster: the content of cluster.yaml, with the resources that `ray up` fills in for each type of node.
    """
    types, limit = cluster.get("available_node_types", {}), int(cluster.get("max_workers", 2))
    head = cluster.get("head_node_type")
    workers = [
        (_capacity(node), min(int(node.get("max_workers", limit)), limit))
        for name, node in types.items()
        if name != head
    ]
    whole, left = _capacity(types.get(head, {})), limit
    for capacity, count in sorted(workers, key=lambda each: (each[0].gpus, each[0].cpus), reverse=True):
        for _ in range(min(count, left)):
            whole += capacity
        left -= min(count, left)
    return whole


def _capacity(node_type: Mapping[str, Any]) -> Capacity:
    resources = node_type.get("resources") or {}
    return Capacity(float(resources.get("CPU", 0)), float(resources.get("GPU", 0)))


def _grows_unseen(most: Capacity | None) -> bool:
    """Whether an autoscaler may start nodes of types that are not known here, as KubeRay's."""
    import ray

    return most is None and any(_GROUP_LABEL in node.get("Labels", {}) for node in ray.nodes())


def _where() -> str:
    return "this machine" if owns_ray() else "the cluster"


def _describe(now: Capacity, most: Capacity | None) -> str:
    if owns_ray():
        return f"this machine has {_number(now.gpus)}"
    here = f"the cluster has {_number(now.gpus)} now"
    if most is not None and most.gpus > now.gpus:
        return f"{here}, and its autoscaler can bring {_number(most.gpus)}"
    if _grows_unseen(most):
        return f"{here}; if its autoscaler has types of nodes with GPUs, cluster.gpus=N asks for them"
    return f"{here}" if most is None else f"{here}, and its autoscaler no type of node with more"


def _number(gpus: float) -> str:
    return f"{gpus:g} GPU{'s' if gpus > 1 else ''}" if gpus else "no GPU"
