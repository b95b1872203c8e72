"""Image towers of open_clip and timm, and their weights."""

import json
import logging
import math
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, ClassVar, cast

import open_clip
import timm
import torch
from timm.layers import AttentionPoolLatent
from timm.models import load_state_dict
from torch import nn
from torch.nn.functional import adaptive_avg_pool2d

from prospect.errors import CheckpointError, ConfigError
from prospect.messages import first_line
from prospect.vision.settings import VisionSettings
from prospect.vision.tower import Tower
from prospect.vision.weights import TINY, Weights

log = logging.getLogger(__name__)

_TINY_CONFIG = {
    "embed_dim": 64,
    "vision_cfg": {"image_size": 64, "timm_model_name": "test_vit", "timm_pool": "map", "timm_proj": "none"},
    "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1},
}


class PooledTower(Tower):
    """A tower of open_clip or timm: pictures [N, 3, S, S] -> one pooled vector each, [N, D]."""

    GRID_SIDE: ClassVar = {1: 0, 5: 2, 10: 3}
    """Side of the pooled grid behind the pooled vector, by tokens a frame."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module: Any = module

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        return self.module(pictures)

    def tokens(self, pictures: torch.Tensor, count: int) -> torch.Tensor:
        """The pooled vector, then the grid row by row: [N, 3, S, S] -> [N, 1 + side^2, D]."""
        side = self.GRID_SIDE[count]
        if side == 0:
            return self.module(pictures)[:, None]
        trunk = getattr(self.module, "trunk", self.module)
        if not hasattr(trunk, "forward_features"):
            raise ConfigError(
                "vision.tokens_per_frame above 1 needs a model with a timm image tower", field="vision.tokens_per_frame"
            )
        features = trunk.forward_features(pictures)
        pooled = trunk.forward_head(features)
        pooled = self.module.head(pooled) if self.module is not trunk else pooled
        grid = features if features.ndim == 4 else _as_grid(features, trunk.num_prefix_tokens)
        if grid.shape[1] != pooled.shape[1]:
            raise ConfigError(
                f"vision.tokens_per_frame above 1 needs a model whose grid is as wide as its pooled vector, "
                f"but their widths are {grid.shape[1]} and {pooled.shape[1]}",
                field="vision.tokens_per_frame",
            )
        cells = adaptive_avg_pool2d(grid, side).flatten(2).transpose(1, 2)
        return torch.cat([pooled[:, None], cells], dim=1)


def _as_grid(features: torch.Tensor, prefix: int) -> torch.Tensor:
    """Reshape a transformer's tokens of a square picture: [N, prefix + h*w, D] -> [N, D, h, w]."""
    patches = features[:, prefix:]
    side = math.isqrt(patches.shape[1])
    return patches.transpose(1, 2).unflatten(2, (side, side))


def build_tower(settings: VisionSettings, weights: Weights) -> Tower:
    """Build the image tower on the CPU, in eval mode.

    Raises:
        ConfigError: the backend does not know the model.
        CheckpointError: the weights do not fit it.
    """
    backend, model = settings.backend, settings.model
    if backend == "smolvlm":
        from prospect.vision.smolvlm import build_smolvlm  # takes transformers, which others do without

        with _seeded(model, weights):
            return build_smolvlm(model, weights.path, settings.pooling, settings.connector).eval()
    _require_model(backend, model)
    tower = (_trained if weights.seed is None else _random)(backend, model, weights).eval()
    # An attention pool has one query. For so few, SDPA on a CPU gives its threads buffers that are not all aligned, so
    # that on an AMD CPU the last bits of a picture depend on the thread.
    for module in tower.modules():
        if isinstance(module, AttentionPoolLatent):
            module.fused_attn = False  # type: ignore[misc]
    return PooledTower(tower)


def tower_width(settings: VisionSettings) -> int:
    """Read D, the width of the tower's embeddings, from its configuration.

    Raises:
        ConfigError: the backend does not know the model.
        CheckpointError: a folder of SmolVLM2 cannot be read.
    """
    backend, model = settings.backend, settings.model
    if backend == "smolvlm":
        from prospect.vision.smolvlm import smolvlm_width

        return smolvlm_width(model, settings.weights, settings.connector)
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


@contextmanager
def _seeded(model: str, weights: Weights) -> Iterator[None]:
    """Draw the weights that are not read from a seed, and say so."""
    if weights.seed is None:
        yield
        return
    log.warning("vision encoder %s has RANDOM weights (seed %d): good for tests only", model, weights.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(weights.seed)
        yield


def _random(backend: str, model: str, weights: Weights) -> nn.Module:
    with _seeded(model, weights):
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
