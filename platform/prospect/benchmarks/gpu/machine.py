"""Whether this machine can run suite=gpu, and what it has and lacks."""

import importlib.util
import platform
import shutil
import subprocess
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from inspect import signature
from typing import Any

import torch

from prospect.benchmarks.gpu.settings import GpuSuite
from prospect.benchmarks.journal import StageResult
from prospect.errors import ConfigError
from prospect.machine import describe_machine
from prospect.messages import first_line
from prospect.tracking.code_version import code_version

_BFLOAT16 = (8, 0)
"""Compute capability from which a GPU multiplies bfloat16."""
_REHEARSE = "suite.rehearse=true tries every stage on the CPU"
_PACKAGES = {
    "torch": "everything",
    "transformers": "everything",
    "peft": "lora",
    "safetensors": "everything",
    "timm": "siglip",
    "open_clip_torch": "siglip",
    "pytest": "tests",
    "triton": "FlexAttention, torch.compile",
    "pyarrow": "jobs that read data",
    "ray": "clusters and serving",
    "deepspeed": "ZeRO",
    "mlflow": "tracking",
}
"""What each package is for here."""


def require_gpu() -> None:
    """Check that torch finds a GPU that multiplies bfloat16.

    Raises:
        ConfigError: one sentence: no GPU, a driver that is too old, or no bfloat16.
    """
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        reason = first_line(error)
        need = "a newer NVIDIA driver" if "too old" in reason else "an NVIDIA GPU"
        raise ConfigError(f"`suite` (gpu) needs {need}: torch says {reason!r}; {_REHEARSE}.", field="suite") from error
    if (found := torch.cuda.get_device_capability()) < _BFLOAT16:
        raise ConfigError(
            f"`suite` (gpu) needs a GPU with bfloat16: {torch.cuda.get_device_name()} has compute capability "
            f"{found[0]}.{found[1]}, bfloat16 needs 8.0; {_REHEARSE}.",
            field="suite",
        )


def describe(suite: GpuSuite) -> dict[str, Any]:
    """The machine, for the record of a run."""
    machine = describe_machine(suite.device) | {
        "python": platform.python_version(),
        "transformers": _version("transformers"),
    }
    if suite.device == "cpu":
        return machine
    card = torch.cuda.get_device_properties(0)
    return machine | {
        "gpu_memory_gib": round(card.total_memory / 2**30, 1),
        "capability": f"{card.major}.{card.minor}",
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "driver": _driver(),
    }


def commit_of(suite: GpuSuite) -> str:
    """The commit that is measured, with `+` where the tree has changes beside it."""
    code = code_version()
    if suite.commit or code is None:
        return suite.commit or "unknown"
    return code.commit + ("+" if code.diff else "")


def inventory() -> Iterator[StageResult]:
    """What is here and what is missing: packages, compiler and kernels, each with what it is for."""
    for package, purpose in _PACKAGES.items():
        yield {"what": package, "found": _version(package), "for": purpose}
    compiler = next((name for name in ("cc", "gcc", "clang") if shutil.which(name)), None)
    yield {"what": "C compiler", "found": compiler, "for": "FlexAttention, torch.compile"}
    yield {"what": "varlen_attn with block tables", "found": _paged_varlen(), "for": "varlen attention, CUDA graphs"}


def _driver() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _paged_varlen() -> str | None:
    """Torch's version where its packed attention reads pages."""
    if importlib.util.find_spec("torch.nn.attention.varlen") is None:
        return None
    from torch.nn.attention.varlen import varlen_attn

    return torch.__version__ if "block_table" in signature(varlen_attn).parameters else None
