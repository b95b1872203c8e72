"""Step time, peak memory and machine load, for a run's metrics."""

import importlib.util
import resource
import time

import psutil
import torch

SYSTEM_EVERY_S = 10.0
"""Seconds between two measurements of the machine."""

_MIB, _GIB = 2**20, 2**30


class Meter:
    """Measures this process and the machine it runs on, without blocking.

    Args:
        gpu: whether the process computes on a GPU.
    """

    def __init__(self, gpu: bool) -> None:
        self._gpu = gpu
        self._utilization = gpu and importlib.util.find_spec("pynvml") is not None
        self._looked = 0.0
        self._traffic = psutil.net_io_counters()
        psutil.cpu_percent()  # the first call returns 0: each measures the time since the one before
        self.resume()

    def resume(self) -> None:
        """Restart the clock of the next step, so that a validation does not count as its time."""
        self._since = time.monotonic()

    def step(self) -> dict[str, float]:
        """Seconds since the last step, and the process's peak memory in GiB."""
        now = time.monotonic()
        numbers = {"seconds": now - self._since, "peak_memory_gib": _peak_memory()}
        self._since = now
        if self._gpu:
            numbers["peak_gpu_memory_gib"] = torch.cuda.max_memory_allocated() / _GIB
        return numbers

    def system(self) -> dict[str, float]:
        """The machine's load under MLflow's names; empty within `SYSTEM_EVERY_S` of the last measurement."""
        now = time.monotonic()
        if now - self._looked < SYSTEM_EVERY_S:
            return {}
        self._looked = now
        memory, disk, traffic = psutil.virtual_memory(), psutil.disk_usage("/"), psutil.net_io_counters()
        numbers = {
            "cpu_utilization_percentage": psutil.cpu_percent(),
            "system_memory_usage_megabytes": memory.used / _MIB,
            "system_memory_usage_percentage": memory.percent,
            "disk_usage_percentage": disk.percent,
            "network_receive_megabytes": (traffic.bytes_recv - self._traffic.bytes_recv) / _MIB,
            "network_transmit_megabytes": (traffic.bytes_sent - self._traffic.bytes_sent) / _MIB,
        }
        return numbers | (self._gpu_load() if self._gpu else {})

    def _gpu_load(self) -> dict[str, float]:
        free, total = torch.cuda.mem_get_info()
        load = {
            "gpu_0_memory_usage_megabytes": (total - free) / _MIB,
            "gpu_0_memory_usage_percentage": 100 * (total - free) / total,
        }
        if self._utilization:
            load["gpu_0_utilization_percentage"] = float(torch.cuda.utilization())
        return load


def _peak_memory() -> float:
    """GiB; Linux counts in KiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
