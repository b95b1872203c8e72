"""Image towers of open_clip and timm, and their weights."""

import json
import logging
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, cast

import open_clip
import timm
import torch
from timm.layers import AttentionPoolLatent
from timm.models import load_state_dict
from torch import nn

from prospect.errors import CheckpointError, ConfigError
from prospect.messages import first_line
from prospect.vision.weights import TINY, Weights

log = logging.getLogger(__name__)

_TINY_CONFIG = {
    "embed_dim": 64,
    "vision_cfg": {"image_size": 64, "timm_model_name": "test_vit", "timm_pool": "map", "timm_proj": "none"},
    "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1},
}


def build_tower(backend: str, model: str, weights: Weights) -> nn.Module:
    """Build the image tower on the CPU, in eval mode.

    Raises:
        ConfigError: the backend does not know the model.
        CheckpointError: the weights do not fit it.
    """
    _require_model(backend, model)
    tower = (_trained if weights.seed is None else _random)(backend, model, weights).eval()
    # An attention pool has one query. For so few, SDPA on a CPU gives its threads buffers that are not all aligned, so
    # that on an AMD CPU the last bits of a picture depend on the thread.
    for module in tower.modules():
        if isinstance(module, AttentionPoolLatent):
            module.fused_attn = False  # type: ignore[misc]
    return tower


def tower_width(backend: str, model: str) -> int:
    """Read D, the width of the tower's embeddings, from its configuration.

    Raises:
        ConfigError: the backend does not know the model.
    """
    _require_model(backend, model)
    if backend == "open_clip":
        return int(open_clip.get_model_config(model)["embed_dim"])
    with torch.device("meta"):
        return cast(int, timm.create_model(model, pretrained=False, num_classes=0).head_hidden_size)


def _require_model(backend: str, model: str) -> None:
    _register_tiny()
    known = model in open_clip.list_models() if backend == "open_clip" else timm.is_model(model)
    if not known:
        raise ConfigError(f"vision.model ({model}) is unknown to {backend}", field="vision.model")


def _trained(backend: str, model: str, weights: Weights) -> nn.Module:
    try:
        if backend == "open_clip":
            clip = open_clip.create_model(model, pretrained=str(weights.path), require_pretrained=True)
            return clip.visual
        tower: Any = timm.create_model(model, pretrained=False, num_classes=0)
        state = load_state_dict(str(weights.path), use_ema=False)
        if weights.package:
            state = timm_names(state, [len(stage) for stage in tower.blocks])
        classifier = str(tower.pretrained_cfg.get("classifier"))
        tower.load_state_dict({name: value for name, value in state.items() if not name.startswith(f"{classifier}.")})
    except (OSError, RuntimeError, ValueError, KeyError, IndexError, EOFError, UnpicklingError) as error:
        reason = first_line(error)
        raise CheckpointError(
            f"vision.weights ({weights.path}) cannot be read as weights of {model}: {reason}", field="vision.weights"
        ) from error
    return tower


def _random(backend: str, model: str, weights: Weights) -> nn.Module:
    log.warning("vision encoder %s has RANDOM weights (seed %d): good for tests only", model, weights.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(cast(int, weights.seed))
        if backend == "open_clip":
            return cast(nn.Module, open_clip.create_model(model, load_weights=False, pretrained_text=False).visual)
        return timm.create_model(model, pretrained=False, num_classes=0)


def _register_tiny() -> None:
    if TINY not in open_clip.list_models():
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"{TINY}.json"
            path.write_text(json.dumps(_TINY_CONFIG))
            open_clip.add_model_config(path)


_OUTER = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}

_FIRST_BLOCK = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}

_BLOCK = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}


def timm_names(state: Mapping[str, torch.Tensor], stages: list[int]) -> dict[str, torch.Tensor]:
    """Rename weights of efficientnet_lite_pytorch to timm's names.

    Args:
        state: parameters and buffers by that package's names, which number all blocks in one sequence.
        stages: number of blocks in each of timm's stages.
    """
    places = [(stage, block) for stage, blocks in enumerate(stages) for block in range(blocks)]
    renamed = {}
    for name, value in state.items():
        if found := re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", name):
            index, part, leaf = int(found[1]), found[2], found[3]
            stage, block = places[index]
            parts = _BLOCK if index else _FIRST_BLOCK
            renamed[f"blocks.{stage}.{block}.{parts[part]}.{leaf}"] = value
        else:
            part, leaf = name.split(".")
            renamed[f"{_OUTER[part]}.{leaf}"] = value
    return renamed
