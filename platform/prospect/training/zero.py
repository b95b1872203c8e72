"""The DeepSpeed ZeRO backend, in a torch process group that the caller opened.

The only module of training that imports DeepSpeed; only worker processes import it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import deepspeed
import deepspeed.ops
import torch
import torch.distributed as dist
from deepspeed.runtime.zero import GatheredParameters, Init, unwrap_model_for_generation
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
    safe_set_local_fp32_param,
    safe_set_local_optimizer_state,
)
from torch import Tensor, nn

from prospect.data.batches import Batch
from prospect.devices import has_gpu
from prospect.model.adapters import is_adapted, trainable_parameters, unwrap
from prospect.model.interface import DSTModel
from prospect.model.losses import loss_sums
from prospect.model.readings import Readings, loss_sums_and_readings
from prospect.model.settings import LossSettings
from prospect.training.backend import make_optimizer, set_learning_rate, set_updates
from prospect.training.checkpoint import WEIGHTS
from prospect.training.memory_plan import reduce_bucket
from prospect.training.settings import TrainingSettings

T = TypeVar("T")


def zero_config(settings: TrainingSettings, dtype: str, trained: int) -> dict[str, Any]:
    """DeepSpeed's configuration for a model with `trained` trainable parameters.

    The caller accumulates gradients: any number of micro-batches makes a step.
    """
    zero: dict[str, Any] = {"stage": settings.zero_stage, "reduce_bucket_size": reduce_bucket(trained)}
    if settings.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": has_gpu()}
    return {
        "train_micro_batch_size_per_gpu": settings.micro_batch_size,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        "gradient_clipping": settings.max_grad_norm,
        "zero_optimization": zero,
        "zero_force_ds_cpu_optimizer": False,  # DeepSpeed compiles its own on first use; torch has a fused one
        "bf16": {"enabled": dtype == "bfloat16"},
        # With this type in stage 1 DeepSpeed would use another optimizer, which has no partitioned gradients.
        "data_types": {"grad_accum_dtype": "fp32" if settings.zero_stage > 1 else None},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 1_000_000_000,
    }


class _LossModule(nn.Module):
    """Model and losses as one module, because ZeRO gathers weights only inside a module's forward pass."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.wrapped = model

    def forward(self, batch: Batch, settings: LossSettings, read: bool = False) -> Tensor | tuple[Tensor, Readings]:
        compute = loss_sums_and_readings if read else loss_sums
        return compute(unwrap(cast(Any, self.wrapped)), batch, settings)


def _partition(model: nn.Module, config: dict[str, Any], dtype: str, device: torch.device) -> nn.Module:
    """Partition the weights over the ranks, one weight at a time, so that no device ever holds the whole model."""
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(getattr(torch, dtype))
    Init(module=model, config_dict_or_path=config)
    for buffer in model.buffers():
        buffer.data = buffer.data.to(device)
    return model


class TorchProcessGroup:
    """The ranks of an initialised `torch.distributed` group; collectives run on `device`."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()

    def all_reduce(self, tensor: Tensor) -> Tensor:
        moved = tensor.to(self.device)
        dist.all_reduce(moved)
        return moved.to(tensor.device)

    def gather(self, items: list[T]) -> list[T]:
        parts: list[list[T]] = [[] for _ in range(self.world_size)]
        dist.all_gather_object(parts, items)
        return [item for part in parts for item in part]


class ZeroBackend(TorchProcessGroup):
    """A `TrainingBackend` around a DeepSpeed engine."""

    def __init__(self, model: nn.Module, settings: TrainingSettings, dtype: str, device: torch.device) -> None:
        """Every rank passes the same weights; `dtype` is theirs: `float32` or `bfloat16`."""
        super().__init__(device)
        if device.type == "cpu":
            # DeepSpeed compiles its shared-memory collectives on first use, which needs a compiler.
            deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        self._wrapped = model
        self._trainable = trainable_parameters(model)
        self._partitioned = settings.zero_stage == 3
        trained = sum(parameter.numel() for parameter in self._trainable.values())
        optimizer, config = make_optimizer(model, settings), zero_config(settings, dtype, trained)
        self.engine, self._optimizer, *_ = deepspeed.initialize(
            model=_LossModule(_partition(model, config, dtype, device) if self._partitioned else model.to(device)),
            optimizer=optimizer,
            config=config,
        )
        self.model = unwrap(cast(Any, model))
        self.model.logits_in_chunks = not self._partitioned
        # DeepSpeed links parameters to their moments when the first group steps; other groups have none yet.
        self.updates = 0

    def loss_sums(self, batch: Batch, settings: LossSettings) -> Tensor:
        return self.engine(batch, settings)

    def loss_sums_and_readings(self, batch: Batch, settings: LossSettings) -> tuple[Tensor, Readings]:
        return self.engine(batch, settings, read=True)

    def backward(self, loss: Tensor) -> None:
        self.engine.backward(loss * self.world_size)  # DeepSpeed averages over ranks

    def step(self, learning_rate: float) -> float:
        set_learning_rate(self._optimizer, learning_rate)
        self.engine.step()
        return float(self.engine.get_global_grad_norm())

    @contextmanager
    def whole_model(self) -> Iterator[DSTModel]:
        if not self._partitioned:
            yield self.model
            return
        with unwrap_model_for_generation(self.engine):
            yield self.model

    def state_dict(self) -> dict[str, Tensor] | None:
        """Trainable weights and buffers of an adapted model, otherwise all weights; a tied weight is held once."""
        if not self._partitioned:
            return None
        gathered: dict[int, Tensor] = {}
        weights = self._wrapped.state_dict(keep_vars=True)
        if is_adapted(self._wrapped):
            weights = {n: w for n, w in weights.items() if w.requires_grad or not isinstance(w, nn.Parameter)}
        for weight in weights.values():
            if id(weight) not in gathered:
                with GatheredParameters([weight]):
                    gathered[id(weight)] = weight.detach().cpu().clone() if self.rank == 0 else torch.empty(0)
        return {name: gathered[id(weight)] for name, weight in weights.items()}

    @property
    def updates(self) -> int:
        return max((int(state["step"]) for state in self._optimizer.optimizer.state.values()), default=0)

    @updates.setter
    def updates(self, count: int) -> None:
        optimizer = self._optimizer.optimizer
        if self._partitioned:
            set_updates(optimizer, self._optimizer.fp32_partitioned_groups_flat, count)
            return
        set_updates(optimizer, [part for group in optimizer.param_groups for part in group["params"]], count)
        self._optimizer._lazy_init_hp_params_optimizer_state()

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(getattr(p, "ds_shape", p.shape)) for name, p in self._trainable.items()}

    def get_tensor(self, kind: str, name: str) -> Tensor:
        parameter = self._trainable[name]
        if kind == WEIGHTS:
            return safe_get_full_fp32_param(parameter).cpu()
        return safe_get_full_optimizer_state(parameter, kind).cpu()

    def set_tensor(self, kind: str, name: str, value: Tensor) -> None:
        parameter, value = self._trainable[name], value.to(self.device)
        if self._partitioned:
            self._set_part(kind, parameter, value)
        elif kind == WEIGHTS:
            safe_set_full_fp32_param(parameter, value)
        else:
            safe_set_full_optimizer_state(parameter, value, kind)
        if kind == WEIGHTS:  # the forward pass reads its own copy
            with GatheredParameters([parameter], modifier_rank=0):
                if not self._partitioned or self.rank == 0:
                    parameter.data.copy_(value)

    def _set_part(self, kind: str, parameter: Any, value: Tensor) -> None:
        """Set this rank's partition, padded: DeepSpeed's own setter truncates tensors that do not divide evenly."""
        size = parameter.ds_tensor.numel()
        padded = nn.functional.pad(value.flatten(), (0, size * self.world_size - value.numel()))
        mine = padded[self.rank * size : (self.rank + 1) * size]
        if kind == WEIGHTS:
            safe_set_local_fp32_param(parameter, mine)
        else:
            safe_set_local_optimizer_state(parameter, mine, kind)
