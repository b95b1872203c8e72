"""What a measurement says of the machine that it ran on."""

import os
import platform
import sys
from pathlib import Path
from typing import Any

import psutil
import torch


def describe_machine(device: str) -> dict[str, Any]:
    """Processor or GPU, cores, memory, torch and load, for the record of what ran on `device` (`cpu` or `cuda`)."""
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "torch": torch.__version__,
        "load_average": os.getloadavg()[0],
    }


def _processor() -> str:
    if sys.platform == "linux":
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "CPU")
    return platform.processor() or platform.machine()
