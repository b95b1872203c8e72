"""Counts of trainable and frozen parameters by part of a model."""

from collections import Counter
from dataclasses import dataclass

from rich import box
from rich.table import Table
from torch import nn

from prospect.model.adapters import NEW_MODULES

_LABELS = {
    "lora": "LoRA adapters",
    "mm_projector": "projector",
    "speaking_decision_head": "speaking head",
    "dst_update_head": "update head",
    "dst_state_head": "state head",
    "tokens": "rows of new tokens",
    "base": "language model",
}


@dataclass(frozen=True)
class ParameterGroup:
    """Parameter counts of a part of a model; a 4-bit weight counts as one parameter."""

    name: str
    tensors: int
    trainable: int
    frozen: int


def parameter_groups(model: nn.Module) -> list[ParameterGroup]:
    """The parts that a model has, LoRA first and the base last."""
    tensors, trainable, frozen = Counter[str](), Counter[str](), Counter[str]()
    for name, parameter in model.named_parameters():
        if "original_module" in name:  # peft keeps the initial head beside the one that trains
            continue
        part = _part(name)
        tensors[part] += parameter.requires_grad
        state = getattr(parameter, "quant_state", None)
        (trainable if parameter.requires_grad else frozen)[part] += state.shape.numel() if state else parameter.numel()
    present = [part for part in _LABELS if trainable[part] or frozen[part]]
    return [ParameterGroup(_LABELS[part], tensors[part], trainable[part], frozen[part]) for part in present]


def parameter_table(model: nn.Module) -> Table:
    """Table of the parts: trainable tensors, trainable and frozen parameters."""
    groups = parameter_groups(model)
    table = Table(title="Parameters", box=box.SIMPLE_HEAD, show_edge=False, show_footer=True)
    table.add_column("part", footer="all")
    for name in ("tensors", "trainable", "frozen"):
        total = sum(getattr(group, name) for group in groups)
        table.add_column(name, footer=f"{total:,}", justify="right")
    for group in groups:
        table.add_row(group.name, f"{group.tensors:,}", f"{group.trainable:,}", f"{group.frozen:,}")
    return table


def _part(name: str) -> str:
    if "lora_" in name:
        return "lora"
    if "trainable_tokens_" in name:
        return "tokens"
    return next((module for module in NEW_MODULES if f"{module}." in name), "base")
