"""Compare a base model as training and serving load it with what transformers computes from the same weights."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from prospect.devices import pick_device
from prospect.errors import CheckpointError
from prospect.model.adapters import build_model, build_tokenizer
from prospect.model.bases import base_folder, load_tokenizer
from prospect.model.interface import DSTModel
from prospect.model.settings import ModelSettings
from prospect.streaming.attention.interface import Chunk
from prospect.streaming.attention.select import attention_backend
from prospect.streaming.kv_cache.block_table import BlockTable
from prospect.streaming.kv_cache.sizing import make_pool
from prospect.streaming.runner.forward import PackedTrunk
from prospect.streaming.settings import StreamingSettings

TEXT = (
    "Rinse the rice until the water stays clear, and put it into the pot with a cup and a half of water. When it "
    "boils, turn the heat down, cover the pot and wait for eighteen minutes; do not lift the lid. Meanwhile slice "
    "the onions, heat two spoons of oil, and fry them until they are golden. At the end let the rice rest for five "
    "minutes, loosen it with a fork and stir in the onions with a pinch of salt."
)
"""What both read; each token is predicted from those before it."""
TOLERANCE = 2e-3
"""Largest difference of two log-probabilities in float32 whose sums were only ordered otherwise."""
CHUNK = 16
"""Tokens that the engine is given at once."""


@dataclass(frozen=True)
class Agreement:
    """How far log-probabilities lie from transformers' own, over all tokens and the whole vocabulary."""

    way: str
    """Which of our code computed them."""
    largest: float
    """Largest absolute difference."""
    same_choice: float
    """Share of positions at which both find the same token most probable."""


def compare_with_transformers(base: str, cache: Path) -> list[Agreement]:
    """Load `base` twice, one after the other and in float32, and compare what it predicts for `TEXT`.

    Args:
        base: a folder, a name of the hub, or `package:NAME`.
        cache: folder for converted packaged weights.

    Returns:
        Agreement of training's forward pass, and of the engine's over its pages.

    Raises:
        CheckpointError: the model cannot be loaded, or predicts something else.
    """
    settings = ModelSettings(base=base, dtype="float32", adaptation="full")
    ids = load_tokenizer(base, cache)(TEXT)["input_ids"]
    device = pick_device()
    expected = _reference(base_folder(base, cache), ids, device)
    tokenizer = build_tokenizer(settings, (), cache)
    ours = build_model(settings, tokenizer, vision_dim=8, tokens_per_frame=1, fingerprint="check", cache=cache)
    torch.nn.Module.to(ours, device).eval()
    ways = {"training's forward pass": _whole(ours, ids), f"the engine, {CHUNK} tokens at a time": _paged(ours, ids)}
    found = [_agreement(way, logits[:, : expected.shape[1]], expected) for way, logits in ways.items()]
    if wrong := [each for each in found if not each.largest <= TOLERANCE]:
        raise CheckpointError(
            f"`model` ({base}) predicts something else here than in transformers: log-probabilities of {wrong[0].way} "
            f"differ by up to {wrong[0].largest:.3g}, and {1 - wrong[0].same_choice:.1%} of its choices; please report "
            "it with the model's config.json",
            field="model",
        )
    return found


@torch.inference_mode()
def _reference(folder: str, ids: Sequence[int], device: torch.device) -> Tensor:
    """Log-probabilities [S, V] of the class that the folder's config.json names."""
    architecture, *_ = AutoConfig.from_pretrained(folder).architectures or ("",)
    own: Any = getattr(transformers, architecture, AutoModelForCausalLM)
    model = own.from_pretrained(folder, dtype=torch.float32)
    model.to(device).eval()
    return model(torch.tensor([ids], device=device)).logits[0].log_softmax(-1).cpu()


@torch.inference_mode()
def _whole(model: DSTModel, ids: Sequence[int]) -> Tensor:
    frames = torch.empty(0, model.config.vision_dim, device=model.device)
    hidden = model.trunk(torch.tensor([ids], device=model.device), frames)[0]
    return model.lm_head(hidden).cpu()


@torch.inference_mode()
def _paged(model: DSTModel, ids: Sequence[int]) -> Tensor:
    settings = StreamingSettings(max_sessions=1)
    pool = make_pool(model, settings, len(ids))
    trunk = PackedTrunk(model, pool, attention_backend(settings.attention, pool))
    table = BlockTable(pool, len(ids), shares=False)
    rows = []
    for start in range(0, len(ids), CHUNK):
        chunk = list(ids[start : start + CHUNK])
        table.reserve(len(chunk))
        rows += trunk([Chunk(table, chunk)])
    return model.lm_head(torch.cat(rows)).cpu()


def _agreement(way: str, logits: Tensor, expected: Tensor) -> Agreement:
    """`logits` [S, V] without the rows of our own tokens, which transformers' vocabulary lacks."""
    found = logits.float().log_softmax(-1)
    same = (found.argmax(-1) == expected.argmax(-1)).float().mean()
    return Agreement(way, float((found - expected).abs().max()), float(same))
