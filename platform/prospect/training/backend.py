"""What a step needs of the machinery: `PlainBackend` on one device here, DeepSpeed's in zero.py."""

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


class Group(Protocol):
    """Ranks that tell each other something; all of them make each call."""

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """The sum of `tensor` over all ranks."""
        ...

    def gather(self, items: list[T]) -> list[T]:
        """The items of all ranks, in the order of ranks."""
        ...


class Alone:
    """The group of one process."""

    def all_reduce(self, tensor: Tensor) -> Tensor:
        return tensor

    def gather(self, items: list[T]) -> list[T]:
        return items


class Backend(Checkpointable, Group, Protocol):
    """What a step needs of the machinery. Gradients of all `backward` calls, on all ranks, are added up."""

    model: DSTModel
    """The DST model inside whatever wraps it."""
    device: torch.device

    def loss_sums(self, batch: Batch, settings: LossSettings) -> Tensor:
        """`model.losses.loss_sums`; on all ranks equally often, because partitioned weights meet there."""
        ...

    def loss_sums_and_readings(self, batch: Batch, settings: LossSettings) -> tuple[Tensor, Readings]:
        """`model.readings.loss_sums_and_readings`; on all ranks equally often."""
        ...

    def backward(self, loss: Tensor) -> None: ...

    def step(self, learning_rate: float) -> float:
        """Clips, updates and clears the gradients; returns their global norm before clipping."""
        ...

    def whole_model(self) -> AbstractContextManager[DSTModel]:
        """The model with all its weights in place, for a rank to use alone between two steps, and not to change.

        All ranks enter and leave together.
        """
        ...

    def state_dict(self) -> dict[str, Tensor] | None:
        """What a model's folder holds, on rank 0's CPU; None where that is what the model itself holds."""
        ...


class PlainBackend(Alone):
    """One process, one device, torch's AdamW."""

    rank = 0
    world_size = 1

    def __init__(self, model: nn.Module, settings: TrainingSettings, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self.model = unwrap(model.to(self.device))  # type: ignore[arg-type]
        self._dtype = self.model.dtype  # of what was built; its arithmetic and its folder keep it
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
        """Of a whole model in bfloat16 its weights in that; adapters are small enough for float32."""
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
    """bfloat16 arithmetic with what trains in float32, for a model of `dtype`, or of its frozen base's."""
    return torch.autocast(model.device.type, torch.bfloat16, enabled=(dtype or model.dtype) == torch.bfloat16)


def set_updates(optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor], count: int) -> None:
    """Sets AdamW's counter of updates; `parameters` are what it updates."""
    fused = any(group.get("fused") for group in optimizer.param_groups)
    for parameter in parameters:
        state = optimizer.state[parameter]
        state.update({kind: torch.zeros_like(parameter) for kind in MOMENTS if kind not in state})
        state["step"] = torch.tensor(float(count), device=parameter.device if fused else "cpu")


def make_optimizer(model: nn.Module, settings: TrainingSettings) -> torch.optim.AdamW:
    """AdamW over what is trainable; only matrices decay."""
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


def raise_on_all_ranks(group: Group, result: T | Exception) -> T:
    """Return `result`, or raise on every rank if any failed; healthy ranks would hang in the next collective.

    Raises:
        TrainingError: on every rank, with the reason of the first that failed.
    """
    failed = isinstance(result, Exception)
    if group.all_reduce(torch.tensor(float(failed))):
        reasons = group.gather([str(result)] if failed else [])
        raise TrainingError(reasons[0]) from (result if isinstance(result, Exception) else None)
    return cast(T, result)
