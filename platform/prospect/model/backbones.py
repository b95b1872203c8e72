"""The registry of backbones: a base's or saved model's `model_type` -> our config and model class.

To add a backbone, write a module with a config and a `DSTModel`, and add a line here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedConfig

from prospect.errors import CheckpointError, ConfigError
from prospect.model.configuration import tiny_llama
from prospect.model.interface import DSTModel
from prospect.model.llama import DSTProActConfig, DSTProActLlamaForCausalLM
from prospect.model.settings import ModelSettings
from prospect.model.smolvlm import DSTSmolVLMConfig, DSTSmolVLMWithStrategies, tiny_smolvlm


@dataclass(frozen=True)
class Backbone:
    """Config and model class for a class of language model."""

    config: type[Any]
    """Both a `DSTConfig` and a configuration of transformers."""
    model: type[DSTModel]
    examples: str
    """Well-known bases of this class, for errors."""
    tiny: Callable[..., PreTrainedConfig]
    """From a `TinyGeometry`, and further fields of the text trunk, to the configuration of a base without weights."""


BACKBONES = {
    "llama": Backbone(DSTProActConfig, DSTProActLlamaForCausalLM, "Llama-3.2 and SmolLM2", tiny_llama),
    "smolvlm": Backbone(DSTSmolVLMConfig, DSTSmolVLMWithStrategies, "SmolVLM2", tiny_smolvlm),
}
"""By the `model_type` of a base."""


def tiny_config(settings: ModelSettings, **given: Any) -> PreTrainedConfig:
    """Configuration of a base that is trained from scratch; `given` sets further fields of its text trunk.

    Raises:
        ConfigError: no backbone has this name.
    """
    if settings.tiny_type not in BACKBONES:
        kinds = ", ".join(f"tiny:{kind}" for kind in BACKBONES)
        raise ConfigError(f"`model.base` ({settings.base}) is unknown; known are {kinds}.", field="model.base")
    return BACKBONES[settings.tiny_type].tiny(settings.tiny, **given)


def backbone_of(config: PreTrainedConfig, name: str = "") -> Backbone:
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
