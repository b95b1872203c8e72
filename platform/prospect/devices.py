"""The device that this process computes on: the one place that asks torch whether there is a GPU."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from prospect.errors import DeviceError
from prospect.messages import first_line


def pick_device(wanted: str = "auto") -> torch.device:
    """The device to compute on; `auto` is the current GPU where torch finds one, else the CPU."""
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(wanted)


def has_gpu() -> bool:
    """Whether `pick_device` would pick a GPU."""
    return pick_device().type == "cuda"


def gpu_bytes() -> int | None:
    """Bytes that this process has taken of its GPU; None before it uses one."""
    return torch.cuda.memory_reserved() if torch.cuda.is_initialized() else None


def why_no_gpu() -> str:
    """Why torch finds no GPU, in its own words: no driver, one that is too old, no device."""
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        return first_line(error)
    return "no device"


@contextmanager
def explain_device_failure() -> Iterator[None]:
    """Turn what torch raises when a GPU fails in the middle of the work into a `DeviceError` that names this node."""
    try:
        yield
    except RuntimeError as error:
        # cuBLAS, cuDNN and NCCL report through plain RuntimeErrors.
        if not isinstance(error, torch.AcceleratorError) and not str(error).startswith(("CUDA error", "cuDNN error")):
            raise
        raise DeviceError(
            f"the GPU of node {socket.gethostname()} failed ({first_line(error)}): look at it with nvidia-smi; what "
            "was done before is kept, and the same command goes on from there"
        ) from error
