"""Checks before a model is loaded: whether training fits its device, which settings save memory, what will train."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import psutil
import torch
from rich.table import Table

from prospect.devices import has_gpu
from prospect.errors import ConfigError
from prospect.model.adapters import bitsandbytes
from prospect.model.geometry import base_geometry
from prospect.model.parameters import parameter_table
from prospect.model.settings import ModelSettings
from prospect.training.activations import adapted_shape
from prospect.training.checks import GIB
from prospect.training.memory_plan import USABLE, MemoryPlan
from prospect.training.settings import OPERATIONAL, OutOfMemoryError, TrainingSettings

NOTABLE = 0.15
"""Share of the peak from which a part is worth saving."""
CERTAIN = 0.85
"""Smallest measured ratio of a step's real peak to the planned one; see tests/training/test_plan.py."""
_CGROUP = Path("/sys/fs/cgroup/memory.max")
"""The container's memory limit in bytes, or `max`."""


@dataclass(frozen=True)
class DeviceInfo:
    """Name and memory of the device that a worker computes on.

    Attributes:
        name: for sentences.
        num_bytes: of its memory; workers on one machine's CPUs share it.
        gpu: whether it is a GPU.
        bfloat16: whether it computes in bfloat16.
    """

    name: str
    num_bytes: int
    gpu: bool
    bfloat16: bool = True


def describe_device(gpu: bool = True) -> DeviceInfo:
    """The GPU of this process, unless it is not to be used, or else the machine, with the container's memory limit."""
    if gpu and has_gpu():
        about = torch.cuda.get_device_properties(torch.cuda.current_device())
        return DeviceInfo(about.name, about.total_memory, True, torch.cuda.is_bf16_supported(including_emulation=False))
    limit = _CGROUP.read_text().strip() if _CGROUP.is_file() else "max"
    memory = psutil.virtual_memory().total
    return DeviceInfo("this machine", min(memory, int(limit)) if limit.isdecimal() else memory, False)


def trained_parameters(model: ModelSettings, vision_dim: int) -> Table:
    """Table of trainable and frozen parameters, without building the model."""
    return parameter_table(adapted_shape(base_geometry(model), model, vision_dim))


def check_device(
    model: ModelSettings,
    training: TrainingSettings,
    planned: MemoryPlan,
    device: DeviceInfo,
    workers: int = 1,
    begun: bool = False,
) -> str:
    """Refuse a training that cannot run on `device`; where memory may be tight, return a remark.

    Args:
        model: the model's settings.
        training: the training's settings.
        planned: memory of one worker.
        device: of the workers.
        workers: how many there are; on CPUs they share the machine's memory.
        begun: whether the run has begun, so that some settings need another run name.

    Returns:
        A remark, or an empty string.

    Raises:
        ConfigError: too little memory, no bfloat16, or no bitsandbytes for 4-bit weights.
    """
    if model.adaptation == "qlora":
        bitsandbytes()
    if model.dtype == "bfloat16" and not device.bfloat16:
        raise ConfigError(
            f"`model.dtype` (bfloat16) must be float32 on {device.name}, which has no bfloat16: set model.dtype=float32"
            f"{', under another training.run_name' if begun else ''}.",
            field="model.dtype",
        )
    needed = planned.peak if device.gpu else workers * (planned.peak + planned.host)
    room = device.num_bytes / GIB
    if CERTAIN * needed > device.num_bytes:
        who = f"{workers} workers" if workers > 1 and not device.gpu else "a step"
        share = planned.activations / planned.peak
        changes = savings(model, training, planned, device.gpu)
        raise ConfigError(
            f"`training` cannot run on {device.name}, which has {room:.1f} GiB: {who} would take "
            f"{needed / GIB:.1f} GiB, {share:.0%} of it for the {planned.tokens:,} tokens that are computed at once; "
            f"{_restart_advice(changes) if begun else join_savings(changes)}.",
            field="training",
        )
    if needed > USABLE * device.num_bytes:
        return f"memory will be tight: about {needed / GIB:.1f} of {room:.1f} GiB on {device.name}"
    return ""


class Saving(NamedTuple):
    """A change of settings that saves memory.

    Attributes:
        how: as a command, `lower training.micro_batch_size`.
        same_run: whether a run that has begun can continue with it.
    """

    how: str
    same_run: bool


def savings(model: ModelSettings, training: TrainingSettings, planned: MemoryPlan, gpu: bool = True) -> list[Saving]:
    """Changes that save memory, the most effective first."""
    return [_saving(*each) for each in _savings(model, training, planned, gpu)] or [Saving("use a larger device", True)]


def _saving(how: str, key: str, value: str = "") -> Saving:
    section, _, name = key.partition(".")
    return Saving(f"{how} {key}{value and f'={value}'}", section == "training" and name in OPERATIONAL)


def _savings(
    model: ModelSettings, training: TrainingSettings, planned: MemoryPlan, gpu: bool
) -> Iterator[tuple[str, ...]]:
    """(verb, setting, value) of each change."""
    state = planned.master + planned.optimizer + planned.gradients
    if planned.activations > NOTABLE * planned.peak:
        if not training.activation_checkpointing:
            yield "set", "training.activation_checkpointing", "true"
        if training.micro_batch_tokens is not None:
            yield "lower", "training.micro_batch_tokens"
        elif training.micro_batch_size > 1:
            yield "lower", "training.micro_batch_size"
        yield "lower", "context.max_seq_len"
    if state > NOTABLE * planned.peak:
        if model.adaptation == "full":
            yield "set", "model.adaptation", "lora"
        if gpu and not training.offload_optimizer:
            yield "set", "training.offload_optimizer", "true"
    if planned.weights > NOTABLE * planned.peak:
        if gpu and training.zero_stage < 3 and training.num_workers > 1 and model.adaptation != "qlora":
            yield "set", "training.zero_stage", "3"
        if model.adaptation == "lora" and model.dtype == "bfloat16":
            yield "set", "model.adaptation", "qlora"
    if gpu and training.num_workers == 1 and state > NOTABLE * planned.peak:
        yield "raise", "training.num_workers"


def join_savings(changes: Sequence[Saving]) -> str:
    return ", or ".join(change.how for change in changes)


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether the error says that the GPU or the machine ran out of memory."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


@contextmanager
def explain_oom(
    model: ModelSettings, training: TrainingSettings, planned: MemoryPlan | None, when: Callable[[], str]
) -> Iterator[None]:
    """Re-raise an out-of-memory error as one line: when it happened and which settings to lower.

    Raises:
        OutOfMemoryError: instead of torch's error; on this rank only.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        changes = (
            savings(model, training, planned, has_gpu()) if planned else [_saving("lower", "training.micro_batch_size")]
        )
        raise OutOfMemoryError(f"the device ran out of memory {when()}; {_restart_advice(changes)}") from error


def _restart_advice(changes: Sequence[Saving]) -> str:
    """How to restart a run that has begun: with changed settings, or under another name."""
    same, other = ([change for change in changes if change.same_run is kind] for kind in (True, False))
    ways = [f"{join_savings(same)}, and start the run again"] if same else []
    ways += [f"start it under another training.run_name and {join_savings(other)}"] if other else []
    return "; or ".join(ways)
