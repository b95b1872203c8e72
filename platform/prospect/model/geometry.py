"""Sizes of base models, and models without weights, for memory plans and benchmarks."""

from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig

from prospect.dialogue.vocabulary import GRAMMAR_TOKENS
from prospect.model.backbones import backbone_of
from prospect.model.bases import base_folder, read_config
from prospect.model.interface import DSTModel
from prospect.model.settings import ModelSettings


def _geometry(
    vocabulary: int, hidden: int, intermediate: int, layers: int, heads: int, kv_heads: int
) -> dict[str, Any]:
    return {
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
    }


GEOMETRIES = {
    "meta-llama/Llama-3.2-3B-Instruct": _geometry(128_256, 3072, 8192, 28, 24, 8),
    "meta-llama/Llama-3.2-1B-Instruct": _geometry(128_256, 2048, 8192, 16, 32, 8),
    "package:smollm2_135m": _geometry(49_152, 576, 1536, 30, 9, 3),
}
"""Sizes of the bases in configs/model; all tie `lm_head` to the input embedding."""


def base_geometry(settings: ModelSettings) -> LlamaConfig:
    """Width and depth of the base, without loading weights.

    Raises:
        CheckpointError: the base is not one of configs/model, and its config.json cannot be read.
    """
    if settings.base == "tiny":
        tiny = settings.tiny
        return LlamaConfig(
            vocab_size=tiny.vocab_size,
            hidden_size=tiny.hidden_size,
            intermediate_size=tiny.intermediate_size,
            num_hidden_layers=tiny.num_layers,
            num_attention_heads=tiny.num_heads,
            tie_word_embeddings=True,
        )
    if settings.base in GEOMETRIES:
        return LlamaConfig(**GEOMETRIES[settings.base], tie_word_embeddings=True)
    return read_config(settings.base, base_folder(settings.base, Path()))


def empty_model(base: LlamaConfig, settings: ModelSettings, vision_dim: int) -> DSTModel:
    """A DST model on torch's meta device, which has shapes but no numbers."""
    vocabulary = base.vocab_size + (0 if settings.base == "tiny" else len(GRAMMAR_TOKENS))
    first = vocabulary - len(GRAMMAR_TOKENS)
    backbone = backbone_of(base, settings.base)
    config = backbone.config.from_base(
        base,
        settings,
        vocab_size=vocabulary,
        vision_dim=vision_dim,
        grammar_ids={token: first + number for number, token in enumerate(GRAMMAR_TOKENS)},
        stop_ids=[0],
    )
    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, settings.dtype))
    try:
        with torch.device("meta"):
            return backbone.model(config)
    finally:
        torch.set_default_dtype(before)
