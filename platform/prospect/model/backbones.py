"""The classes of language model that there are, by the `model_type` of their base and of what is saved.

A new one is a module with a config and a `DSTModel`, and a line here.
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
    """A class of language model, and how our models of it are called."""

    config: type[DSTProActConfig]
    model: type[DSTModel]
    examples: str
    """Bases that users know."""


BACKBONES = {"llama": Backbone(DSTProActConfig, DSTProActLlamaForCausalLM, "Llama-3.2 and SmolLM2")}
"""By the `model_type` of a base."""


def backbone_of(config: LlamaConfig, name: str = "") -> Backbone:
    """The backbone of a base with this configuration; `name` is the base's, for the error.

    Raises:
        CheckpointError: no backbone is made for this class of model.
    """
    if config.model_type not in BACKBONES:
        known = "; ".join(f"{kind} ({backbone.examples})" for kind, backbone in BACKBONES.items())
        raise CheckpointError(
            f"`model.base` is {name}, a model of type {config.model_type}, but a base must be of one of these types: "
            f"{known}.",
            field="model.base",
        )
    return BACKBONES[config.model_type]


def saved_backbone(saved: dict[str, Any]) -> Backbone:
    """The backbone of a saved model, by the JSON of its configuration.

    Raises:
        CheckpointError: it belongs to no backbone.
    """
    for backbone in BACKBONES.values():
        if backbone.config.model_type == saved.get("model_type"):
            return backbone
    raise CheckpointError(f"config.json has the unknown model_type {saved.get('model_type')}")
