"""Sizes of base models, and models without weights, for memory plans and benchmarks."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedConfig

from prospect.dialogue.vocabulary import GRAMMAR_TOKENS
from prospect.model.backbones import backbone_of, tiny_config
from prospect.model.bases import base_folder, read_config
from prospect.model.interface import DSTModel
from prospect.model.settings import ModelSettings
from prospect.vision.smolvlm import TOWER_2_2B


def _llama(vocabulary: int, hidden: int, intermediate: int, layers: int, heads: int, kv_heads: int) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "tie_word_embeddings": True,
    }


GEOMETRIES: dict[str, dict[str, Any]] = {
    "meta-llama/Llama-3.2-3B-Instruct": _llama(128_256, 3072, 8192, 28, 24, 8),
    "meta-llama/Llama-3.2-1B-Instruct": _llama(128_256, 2048, 8192, 16, 32, 8),
    "package:smollm2_135m": _llama(49_152, 576, 1536, 30, 9, 3),
    # The text trunk of HuggingFaceTB/SmolVLM-Instruct's published config.json, whose size the second version keeps,
    # with the vocabulary of SmolVLM2's tokenizer.
    "HuggingFaceTB/SmolVLM2-2.2B-Instruct": {
        "model_type": "smolvlm",
        "text_config": _llama(49_280, 2048, 8192, 24, 32, 32) | {"tie_word_embeddings": False},
        "tie_word_embeddings": False,
        **TOWER_2_2B,
    },
}
"""Sizes of the bases in configs/model, as their config.json has them."""


def base_geometry(settings: ModelSettings) -> PreTrainedConfig:
    """Width and depth of the base, without loading weights.

    Raises:
        CheckpointError: the base is not one of configs/model, and its config.json cannot be read.
        ConfigError: no backbone has the name of a base that is trained from scratch.
    """
    if settings.tiny_type:
        return tiny_config(settings)
    if settings.base in GEOMETRIES:
        return AutoConfig.for_model(**GEOMETRIES[settings.base])
    return read_config(settings.base, base_folder(settings.base, Path()))


def empty_model(base: PreTrainedConfig, settings: ModelSettings, vision_dim: int) -> DSTModel:
    """A DST model on torch's meta device, which has shapes but no numbers."""
    vocabulary = base.get_text_config().vocab_size + (0 if settings.tiny_type else len(GRAMMAR_TOKENS))
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
            model = backbone.model(config)
            model.drop_vision()
            return model
    finally:
        torch.set_default_dtype(before)
