"""Forward, backward and update behind one interface: `PlainBackend` on one device; DeepSpeed's is in zero.py."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol, TypeVar, cast

import torch
from torch import Tensor, nn

from prospect.data.batches import Batch
from prospect.model.adapters import keep_trained_in_float32, trainable_parameters, unwrap
from prospect.model.interface import DSTModel
from prospect.model.losses import loss_sums
from prospect.model.readings import Readings, loss_sums_and_readings
from prospect.model.settings import LossSettings
from prospect.training.checkpoint import MOMENTS, WEIGHTS, Checkpointable
from prospect.training.settings import TrainingError, TrainingSettings

T = TypeVar("T")


class ProcessGroup(Protocol):
    """Collectives over the ranks of a run; every rank makes each call."""

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """The sum of `tensor` over all ranks."""
        ...

    def gather(self, items: list[T]) -> list[T]:
        """The items of all ranks, in rank order."""
        ...


class SingleProcess:
    """A process group of one."""

    def all_reduce(self, tensor: Tensor) -> Tensor:
        return tensor

    def gather(self, items: list[T]) -> list[T]:
        return items


class TrainingBackend(Checkpointable, ProcessGroup, Protocol):
    """Computes losses and updates a model. Gradients of all `backward` calls, on all ranks, are summed."""

    model: DSTModel
    """The DST model inside LoRA and DeepSpeed."""
    device: torch.device

    def loss_sums(self, batch: Batch, settings: LossSettings) -> Tensor:
        """`model.losses.loss_sums`; all ranks call it equally often, because it gathers partitioned weights."""
        ...

    def loss_sums_and_readings(self, batch: Batch, settings: LossSettings) -> tuple[Tensor, Readings]:
        """`model.readings.loss_sums_and_readings`; all ranks call it equally often."""
        ...

    def backward(self, loss: Tensor) -> None: ...

    def step(self, learning_rate: float) -> float:
        """Clip the gradients, update the weights, clear the gradients; returns the global norm before clipping."""
        ...

    def whole_model(self) -> AbstractContextManager[DSTModel]:
        """The model with all weights gathered on this rank, to read between two steps.

        All ranks enter and leave the block together.
        """
        ...

    def state_dict(self) -> dict[str, Tensor] | None:
        """Weights to save, on rank 0's CPU; None where the model's own `state_dict` can be saved as it is."""
        ...


class PlainBackend(SingleProcess):
    """Training on one device in one process, with torch's AdamW."""

    rank = 0
    world_size = 1

    def __init__(self, model: nn.Module, settings: TrainingSettings, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self.model = unwrap(model.to(self.device))  # type: ignore[arg-type]
        self._dtype = self.model.dtype  # as built: forward passes and the saved model keep it
        keep_trained_in_float32(model)
        self._max_grad_norm = settings.max_grad_norm
        self._optimizer = make_optimizer(model, settings)
        self._trainable = trainable_parameters(model)

    def loss_sums(self, batch: Batch, settings: LossSettings) -> Tensor:
        with autocast(self.model, self._dtype):
            return loss_sums(self.model, batch, settings)

    def loss_sums_and_readings(self, batch: Batch, settings: LossSettings) -> tuple[Tensor, Readings]:
        with autocast(self.model, self._dtype):
            return loss_sums_and_readings(self.model, batch, settings)

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def step(self, learning_rate: float) -> float:
        parameters = [parameter for group in self._optimizer.param_groups for parameter in group["params"]]
        norm = nn.utils.clip_grad_norm_(parameters, self._max_grad_norm)
        set_learning_rate(self._optimizer, learning_rate)
        self._optimizer.step()
        self._optimizer.zero_grad()
        return float(norm)

    @contextmanager
    def whole_model(self) -> Iterator[DSTModel]:
        yield self.model

    def state_dict(self) -> dict[str, Tensor] | None:
        """A fully trained bfloat16 model is saved in bfloat16; adapters are small enough for float32."""
        if self.model.dtype == self._dtype:
            return None
        cast: dict[int, Tensor] = {}
        weights = self.model.state_dict(keep_vars=True)
        for weight in weights.values():
            kind = self._dtype if isinstance(weight, nn.Parameter) else weight.dtype
            cast.setdefault(id(weight), weight.detach().to("cpu", kind))
        return {name: cast[id(weight)] for name, weight in weights.items()}

    @property
    def updates(self) -> int:
        return int(max((float(state["step"]) for state in self._optimizer.state.values()), default=0))

    @updates.setter
    def updates(self, count: int) -> None:
        set_updates(self._optimizer, list(self._trainable.values()), count)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(parameter.shape) for name, parameter in self._trainable.items()}

    def get_tensor(self, kind: str, name: str) -> Tensor:
        return self._stored(kind, name).detach().float().cpu()

    def set_tensor(self, kind: str, name: str, value: Tensor) -> None:
        self._stored(kind, name).data.copy_(value)

    def _stored(self, kind: str, name: str) -> Tensor:
        parameter = self._trainable[name]
        if kind == WEIGHTS:
            return parameter
        state = self._optimizer.state.get(parameter, {})
        return state[kind] if kind in state else torch.zeros_like(parameter)


def autocast(model: DSTModel, dtype: torch.dtype | None = None) -> torch.autocast:
    """Autocast to bfloat16 for a model that was built in it; `dtype` is the model's before training."""
    return torch.autocast(model.device.type, torch.bfloat16, enabled=(dtype or model.dtype) == torch.bfloat16)


def set_updates(optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor], count: int) -> None:
    """Set AdamW's update counter for all of its `parameters`."""
    fused = any(group.get("fused") for group in optimizer.param_groups)
    for parameter in parameters:
        state = optimizer.state[parameter]
        state.update({kind: torch.zeros_like(parameter) for kind in MOMENTS if kind not in state})
        state["step"] = torch.tensor(float(count), device=parameter.device if fused else "cpu")


def make_optimizer(model: nn.Module, settings: TrainingSettings) -> torch.optim.AdamW:
    """AdamW over the trainable parameters; only matrices have weight decay."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    used = [group for group in groups if group["params"]]
    return torch.optim.AdamW(used, lr=settings.learning_rate, fused=settings.offload_optimizer or None)


def set_learning_rate(optimizer: Any, learning_rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = learning_rate


def raise_on_all_ranks(group: ProcessGroup, result: T | Exception) -> T:
    """Return `result`, or raise on every rank if any failed; healthy ranks would hang in the next collective.

    Raises:
        TrainingError: on every rank, with the reason of the first that failed.
    """
    failed = isinstance(result, Exception)
    if group.all_reduce(torch.tensor(float(failed))):
        reasons = group.gather([str(result)] if failed else [])
        raise TrainingError(reasons[0]) from (result if isinstance(result, Exception) else None)
    return cast(T, result)
