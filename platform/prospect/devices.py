"""The device that this process computes on: the one place that asks torch whether there is a GPU."""

import torch

from prospect.messages import first_line


def pick_device(wanted: str = "auto") -> torch.device:
    """The device to compute on; `auto` is the current GPU where torch finds one, else the CPU."""
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(wanted)


def has_gpu() -> bool:
    """Whether `pick_device` would pick a GPU."""
    return pick_device().type == "cuda"


def why_no_gpu() -> str:
    """Why torch finds no GPU, in its own words: no driver, one that is too old, no device."""
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        return first_line(error)
    return "no device"
