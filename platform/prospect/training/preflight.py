"""What a training is told before anything is loaded: whether it fits its device, and what it trains."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import psutil
import torch
from rich.table import Table

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
"""Share of the peak from which on it pays to save a part."""
CERTAIN = 0.85
"""Share of the planned peak that a step takes at least, as measured; see tests/training/test_plan.py."""
_CGROUP = Path("/sys/fs/cgroup/memory.max")
"""How much memory a container may use; `max` without a limit."""


@dataclass(frozen=True)
class DeviceInfo:
    """What a worker computes on.

    Attributes:
        name: as a sentence has it.
        num_bytes: of its memory, which workers on one CPU share.
        gpu: else the machine's memory.
        bfloat16: whether it computes in it.
    """

    name: str
    num_bytes: int
    gpu: bool
    bfloat16: bool = True


def describe_device() -> DeviceInfo:
    """The GPU of this process, or the machine's memory as far as we may use it."""
    if torch.cuda.is_available():
        about = torch.cuda.get_device_properties(torch.cuda.current_device())
        return DeviceInfo(about.name, about.total_memory, True, torch.cuda.is_bf16_supported(including_emulation=False))
    limit = _CGROUP.read_text().strip() if _CGROUP.is_file() else "max"
    memory = psutil.virtual_memory().total
    return DeviceInfo("this machine", min(memory, int(limit)) if limit.isdecimal() else memory, False)


def trained_parameters(model: ModelSettings, vision_dim: int) -> Table:
    """What of a model trains and what is frozen, before there is one."""
    return parameter_table(adapted_shape(base_geometry(model), model, vision_dim))


def check_device(
    model: ModelSettings,
    training: TrainingSettings,
    planned: MemoryPlan,
    device: DeviceInfo,
    workers: int = 1,
    begun: bool = False,
) -> str:
    """Stops what clearly cannot run on `device`; what may be tight goes on, with a remark.

    Args:
        model: what is trained.
        training: how.
        planned: of one worker.
        device: that it would run on.
        workers: that share a machine's memory; each has a GPU of its own.
        begun: the run has begun, so that other settings may take another name.

    Returns:
        A remark, or nothing.

    Raises:
        ConfigError: too little memory, no bfloat16, or no bitsandbytes for 4-bit weights.
    """
    if model.adaptation == "qlora":
        bitsandbytes()
    if model.dtype == "bfloat16" and not device.bfloat16:
        raise ConfigError(
            f"`model.dtype` is bfloat16, in which {device.name} does not compute: set model.dtype=float32"
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
            f"{_then_again(changes) if begun else join_savings(changes)}.",
            field="training",
        )
    if needed > USABLE * device.num_bytes:
        return f"memory will be tight: about {needed / GIB:.1f} of {room:.1f} GiB on {device.name}"
    return ""


class Saving(NamedTuple):
    """A change after which a step takes less.

    Attributes:
        how: `lower training.micro_batch_size`.
        same_run: whether a run that has begun may go on with it.
    """

    how: str
    same_run: bool


def savings(model: ModelSettings, training: TrainingSettings, planned: MemoryPlan, gpu: bool = True) -> list[Saving]:
    """What to change so that a step takes less, the parts that matter first."""
    return [_saving(*each) for each in _savings(model, training, planned, gpu)] or [Saving("use a larger device", True)]


def _saving(how: str, key: str, value: str = "") -> Saving:
    section, _, name = key.partition(".")
    return Saving(f"{how} {key}{value and f'={value}'}", section == "training" and name in OPERATIONAL)


def _savings(
    model: ModelSettings, training: TrainingSettings, planned: MemoryPlan, gpu: bool
) -> Iterator[tuple[str, ...]]:
    """What to do, to which setting, and what to set it to."""
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
    """Whether it says that a device, or the machine, has no memory left."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


@contextmanager
def explain_oom(
    model: ModelSettings, training: TrainingSettings, planned: MemoryPlan | None, when: Callable[[], str]
) -> Iterator[None]:
    """Re-raise an out-of-memory error as one line: when it happened and which settings to lower.

    Raises:
        OutOfMemoryError: instead of torch's; this rank's alone, so that the others wait for it in vain.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        gpu = torch.cuda.is_available()
        changes = savings(model, training, planned, gpu) if planned else [_saving("lower", "training.micro_batch_size")]
        raise OutOfMemoryError(f"the device ran out of memory {when()}; {_then_again(changes)}") from error


def _then_again(changes: Sequence[Saving]) -> str:
    """How a run that has begun may come further: by other settings, or under another name."""
    same, other = ([change for change in changes if change.same_run is kind] for kind in (True, False))
    ways = [f"{join_savings(same)}, and start the run again"] if same else []
    ways += [f"start it under another training.run_name and {join_savings(other)}"] if other else []
    return "; or ".join(ways)
