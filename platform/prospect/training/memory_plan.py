"""Predict the memory of a training step from shapes: nothing is loaded and nothing computed.

Weights, gradients and the optimizer's state follow from the number of parameters; activations.py has the rest.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from rich import box
from rich.table import Table

from prospect.model.adapters import PROJECTIONS
from prospect.model.geometry import base_geometry
from prospect.model.settings import ModelSettings
from prospect.training.activations import activation_bytes, adapted_shape
from prospect.training.checks import GIB, card_bytes
from prospect.training.settings import TrainingSettings

CARDS = ("24GB", "40GB", "80GB")
NF4_BYTES = 4.127 / 8
"""Bytes of an NF4 weight with its share of quantised scales."""
USABLE = 0.95
"""Share of a card that tensors can fill; fragments and kernels' workspaces take the rest."""
CONTEXT_BYTES = int(0.5 * GIB)
"""Memory of the CUDA context."""
BUCKET = 500_000_000
"""Most gradients that DeepSpeed reduces at once."""
MAX_LIVE_PARAMETERS = 1_000_000_000
"""Gathered weights that ZeRO-3 keeps for their next use: DeepSpeed's default."""

_ROWS = {
    "weights": "weights",
    "master": "float32 copy of trainable weights",
    "optimizer": "optimizer",
    "gradients": "gradients",
    "gathered": "gathered weights",
    "activations": "activations",
    "update": "intermediate results of the update, instead of activations",
}


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes on one device, at the step's peak.

    Attributes:
        weights: of the model, as the forward pass reads them.
        master: DeepSpeed's float32 copy of trainable weights.
        optimizer: AdamW's two moments.
        gradients: with DeepSpeed's reduce bucket.
        gathered: whole weights that ZeRO-3 holds at once.
        activations: peak of forward and backward passes, logits included.
        update: temporaries of the optimizer's step, after activations are freed.
        host: in the machine's memory, with offload.
        trainable, frozen: parameters of the whole model.
        tokens: of a micro-batch.
    """

    weights: int
    master: int
    optimizer: int
    gradients: int
    gathered: int
    activations: int
    update: int
    host: int
    trainable: int
    frozen: int
    tokens: int

    @property
    def peak(self) -> int:
        lasting = self.weights + self.master + self.optimizer + self.gradients + self.gathered
        return lasting + max(self.activations, self.update)

    def fits(self, card: str | float) -> bool:
        """Whether the peak fits a `card` ("24GB", or GiB as a number) beside the CUDA context."""
        return self.peak <= USABLE * (card_bytes(card) - CONTEXT_BYTES)

    def table(self, cards: tuple[str, ...] = CARDS) -> Table:
        table = Table(title="Memory of one device", box=box.SIMPLE_HEAD, show_edge=False)
        table.add_column("at the peak of a step")
        table.add_column("GiB", justify="right")
        for name, label in _ROWS.items():
            if getattr(self, name):
                table.add_row(label, f"{getattr(self, name) / GIB:.2f}", end_section=name == "update")
        table.add_row("peak", f"{self.peak / GIB:.2f}", style="bold")
        if self.host:
            table.add_row("in the machine's memory", f"{self.host / GIB:.2f}")
        for card in cards:
            table.add_row(f"fits {card}", "yes" if self.fits(card) else "no")
        return table


def largest_micro_batch(lengths: Iterable[int], training: TrainingSettings) -> tuple[int, ...]:
    """Clip lengths of the largest micro-batch: the longest clips together."""
    ordered, budget = sorted(lengths, reverse=True), training.micro_batch_tokens
    if budget is None:
        return tuple(ordered[: min(training.micro_batch_size, training.batch_size)])
    chosen: list[int] = []
    for length in ordered[: training.batch_size]:
        if room := min(length, budget - sum(chosen)):
            chosen.append(room)  # the last one may be cut: shorter clips fill the row
    return tuple(chosen)


def plan_zero(
    model: ModelSettings, training: TrainingSettings, lengths: tuple[int, ...], vision_dim: int = 1152
) -> MemoryPlan:
    """The plan of DeepSpeed training; `lengths` are those of a micro-batch's clips."""
    sizes, dtype = _sizes(model, vision_dim), getattr(torch, model.dtype)
    trained, width = sizes.trainable, dtype.itemsize
    stage, offload = training.zero_stage, training.offload_optimizer
    part = 4 * trained // training.num_workers  # one rank's share of a float32 number for each trainable parameter
    weights = sizes.frozen_bytes + width * trained
    summed = part if stage > 1 else width * trained
    on_device = 0 if offload else 1
    return MemoryPlan(
        weights=weights // (training.num_workers if stage == 3 else 1),
        master=part * on_device,
        optimizer=2 * part * on_device,
        gradients=summed * on_device + width * reduce_bucket(trained),
        gathered=min(weights, width * MAX_LIVE_PARAMETERS) if stage == 3 else 0,
        activations=activation_bytes(model, training, lengths, vision_dim, dtype),
        update=(3 if stage == 3 else 2) * part * on_device,  # the last is ZeRO-3's float32 copy of the gradients
        host=(3 * part + summed) * offload,
        trainable=trained,
        frozen=sizes.frozen,
        tokens=sum(lengths),
    )


def plan_plain(
    model: ModelSettings, training: TrainingSettings, lengths: tuple[int, ...], vision_dim: int = 1152
) -> MemoryPlan:
    """The plan of `PlainBackend`: one device, no DeepSpeed, trainable weights in float32."""
    sizes, width = _sizes(model, vision_dim), torch.float32.itemsize
    return MemoryPlan(
        weights=sizes.frozen_bytes + width * sizes.trainable,
        master=0,
        optimizer=2 * width * sizes.trainable,
        gradients=width * sizes.trainable,
        gathered=0,
        activations=activation_bytes(model, training, lengths, vision_dim, torch.float32),
        update=width * sizes.trainable,
        host=0,
        trainable=sizes.trainable,
        frozen=sizes.frozen,
        tokens=sum(lengths),
    )


def reduce_bucket(trained: int) -> int:
    """Gradients that DeepSpeed reduces at once; it allocates a buffer of this many."""
    return min(BUCKET, trained)


@dataclass(frozen=True)
class _Sizes:
    trainable: int
    frozen: int
    frozen_bytes: int


def _sizes(settings: ModelSettings, vision_dim: int) -> _Sizes:
    model = adapted_shape(base_geometry(settings), settings, vision_dim)
    trainable = frozen = frozen_bytes = 0
    seen: set[int] = set()
    for name, parameter in model.named_parameters():
        if id(parameter) in seen or "original_module" in name:
            continue
        seen.add(id(parameter))
        if parameter.requires_grad:
            trainable += parameter.numel()
            continue
        in_4_bits = settings.adaptation == "qlora" and any(f".{part}." in name for part in PROJECTIONS)
        frozen += parameter.numel()
        frozen_bytes += int(parameter.numel() * (NF4_BYTES if in_4_bits else parameter.element_size()))
    return _Sizes(trainable, frozen, frozen_bytes)
