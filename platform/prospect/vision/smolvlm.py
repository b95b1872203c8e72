"""SmolVLM2's vision tower and connector as an encoder of frames."""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.nn.functional import interpolate
from transformers import AutoConfig, SmolVLMConfig
from transformers.models.smolvlm.modeling_smolvlm import SmolVLMConnector, SmolVLMVisionTransformer

from prospect.errors import CheckpointError, ConfigError
from prospect.messages import first_line
from prospect.vision.smolvlm_files import SMOLVLM_TINY, smolvlm_folder, tower_files, tower_parts
from prospect.vision.tower import Tower

SPLIT_SIDE = 4
"""Crops along a side of a picture that is split; the processor of SmolVLM2 makes 4x4, and puts the whole one last."""

TOWER_2_2B: dict[str, Any] = {
    "vision_config": {
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_hidden_layers": 27,
        "num_attention_heads": 16,
        "patch_size": 14,
        "image_size": 384,
    },
    "scale_factor": 3,
}
"""SigLIP-SO400M and 81 tokens a picture, as the published config.json of HuggingFaceTB/SmolVLM-Instruct has them."""

TINY_TOWER: dict[str, Any] = {
    "vision_config": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "patch_size": 16,
        "image_size": 96,
    },
    "scale_factor": 2,
}
"""Nine tokens a picture."""

_KNOWN = {SMOLVLM_TINY: (TINY_TOWER, 128), "HuggingFaceTB/SmolVLM2-2.2B-Instruct": (TOWER_2_2B, 2048)}
"""Tower, and width of the text trunk, by the name of a model."""


class SmolVLMTower(Tower):
    """The tower, the connector's pixel shuffle and, unless embeddings are to stand before it, its projection.

    Args:
        config: of the whole model.
        pooling: how one token is made of a picture's: their `mean`, or the `first`, its top left corner.
        connector: whether embeddings have the width of the model, or that of the connector's input.
    """

    def __init__(self, config: SmolVLMConfig, pooling: str, connector: bool) -> None:
        super().__init__()
        self.vision_model = SmolVLMVisionTransformer._from_config(config.vision_config)
        self.connector = SmolVLMConnector(config)
        self._pooling, self._projects = pooling, connector
        vision: Any = config.vision_config
        self._size: int = vision.image_size
        self.num_tokens = (self._size // vision.patch_size) ** 2 // config.scale_factor**2
        """Tokens of a picture."""

    def forward(self, pictures: Tensor) -> Tensor:
        """[N, 3, S, S] -> [N, T, D]."""
        hidden = self.vision_model(pixel_values=pictures).last_hidden_state
        if self._projects:
            return self.connector(hidden)
        return self.connector.pixel_shuffle(hidden, self.connector.scale_factor)

    def tokens(self, pictures: Tensor, count: int) -> Tensor:
        """The tokens of frames: pictures [N, 3, S, S] -> [N, I, D].

        Args:
            pictures: of the tower's size; of four times that to be split.
            count: I: 1 (pooled), all of a picture's tokens, or those of 4x4 crops and then of the whole picture.

        Raises:
            ConfigError: another number.
        """
        crops = SPLIT_SIDE**2 + 1
        if count == crops * self.num_tokens:
            return self._split(pictures)
        if count not in (1, self.num_tokens):
            raise ConfigError(
                f"vision.tokens_per_frame ({count}) must be 1 (pooled), {self.num_tokens} (all of a picture's tokens) "
                f"or {crops * self.num_tokens} (of 16 crops and the picture) for this encoder.",
                field="vision.tokens_per_frame",
            )
        found = self(pictures)
        if count == self.num_tokens:
            return found
        return found[:, :1] if self._pooling == "first" else found.mean(1, keepdim=True)

    def _split(self, pictures: Tensor) -> Tensor:
        side, size = SPLIT_SIDE, self._size
        if pictures.shape[-1] != side * size:
            raise ConfigError(
                f"vision.image_size ({pictures.shape[-1]}) must be {side * size} for pictures that are split.",
                field="vision.image_size",
            )
        crops = pictures.unfold(2, size, size).unfold(3, size, size)  # [N, 3, 4, 4, S, S]
        crops = crops.permute(0, 2, 3, 1, 4, 5).flatten(1, 2)
        whole = interpolate(pictures, (size, size), mode="bicubic", antialias=True)
        views = torch.cat([crops, whole[:, None]], 1)
        return torch.stack([self(each).flatten(0, 1) for each in views])


def build_smolvlm(model: str, path: Path | None, pooling: str, connector: bool) -> SmolVLMTower:
    """Build the tower from a model's folder, or with random numbers for a known model.

    Raises:
        CheckpointError: the folder has another class of model, no tower, or weights that do not fit.
        ConfigError: the model is not known.
    """
    if path is None:
        return SmolVLMTower(smolvlm_config(model, None), pooling, connector)
    tower = SmolVLMTower(smolvlm_config(model, path), pooling, connector)
    state: dict[str, Tensor] = {}
    try:
        for file in tower_files(path):
            with safe_open(file, "pt") as tensors:
                state |= {short: tensors.get_tensor(name) for name, short in tower_parts(tensors.keys()).items()}
        tower.load_state_dict(state)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(
            f"vision.weights ({path}) do not fit their config.json: {first_line(error)}.", field="vision.weights"
        ) from error
    return tower


def smolvlm_config(model: str, path: Path | None) -> SmolVLMConfig:
    """Configuration of a model's folder, or of a known model without one; raises as `build_smolvlm`."""
    if path is None:
        if model not in _KNOWN:
            raise ConfigError(
                f"vision.model ({model}) is of unknown size: give its folder as vision.weights, or choose one of "
                f"{', '.join(_KNOWN)}.",
                field="vision.model",
            )
        tower, width = _KNOWN[model]
        return SmolVLMConfig(text_config={"model_type": "llama", "hidden_size": width}, **tower)
    try:
        config = AutoConfig.from_pretrained(path)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"vision.weights ({path}) have no config.json that can be read: {first_line(error)}.",
            field="vision.weights",
        ) from error
    if not isinstance(config, SmolVLMConfig):
        raise CheckpointError(
            f"vision.weights ({path}) are of the class {config.model_type}: give a folder of SmolVLM2.",
            field="vision.weights",
        )
    return config


def smolvlm_width(model: str, weights: str, connector: bool) -> int:
    """D, by the settings of these names; reads a folder, but fetches nothing."""
    path = None if weights == "hub" else smolvlm_folder(model, weights)
    config = smolvlm_config(model, path)
    if connector:
        return config.get_text_config().hidden_size
    vision: Any = config.vision_config
    return vision.hidden_size * config.scale_factor**2
