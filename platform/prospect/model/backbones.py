"""The registry of backbones: a base's or saved model's `model_type` -> our config and model class.

To add a backbone, write a module with a config and a `DSTModel`, and add a line here.
"""

from dataclasses import dataclass
from typing import Any

from transformers import LlamaConfig

from prospect.errors import CheckpointError
from prospect.model.configuration import DSTProActConfig
from prospect.model.interface import DSTModel
from prospect.model.llama import DSTProActLlamaForCausalLM


@dataclass(frozen=True)
class Backbone:
    """Config and model class for a class of language model."""

    config: type[DSTProActConfig]
    model: type[DSTModel]
    examples: str
    """Well-known bases of this class, for errors."""


BACKBONES = {"llama": Backbone(DSTProActConfig, DSTProActLlamaForCausalLM, "Llama-3.2 and SmolLM2")}
"""By the `model_type` of a base."""


def backbone_of(config: LlamaConfig, name: str = "") -> Backbone:
    """The backbone for a base with this configuration; `name` is shown in the error.

    Raises:
        CheckpointError: the base's `model_type` is unknown.
    """
    if config.model_type not in BACKBONES:
        known = "; ".join(f"{kind} ({backbone.examples})" for kind, backbone in BACKBONES.items())
        raise CheckpointError(
            f"`model.base` ({name}) has the unknown model_type {config.model_type}; it must be one of these: {known}.",
            field="model.base",
        )
    return BACKBONES[config.model_type]


def saved_backbone(saved: dict[str, Any]) -> Backbone:
    """The backbone of a saved model; `saved` is its config.json.

    Raises:
        CheckpointError: the `model_type` is unknown.
    """
    for backbone in BACKBONES.values():
        if backbone.config.model_type == saved.get("model_type"):
            return backbone
    raise CheckpointError(f"config.json has the unknown model_type {saved.get('model_type')}")
