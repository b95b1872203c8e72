"""A small random base of the tests' backbone, saved as its published ones are."""

from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, SmolVLMConfig, SmolVLMForConditionalGeneration

from prospect.dialogue.vocabulary import Vocabulary
from prospect.vision.smolvlm import TINY_TOWER
from tests.factories import BACKBONE


def save_base(
    folder: Path, vocabulary: Vocabulary, tied: bool = True, fewer: int = 0, stops: list[int] | None = None
) -> Any:
    """Save a base with a text trunk of two layers of 64, and its tokenizer; returns it.

    Args:
        folder: where to.
        vocabulary: its own.
        tied: whether `lm_head` is the input embedding.
        fewer: tokens that the base lacks.
        stops: its own stop ids.
    """
    text = LlamaConfig(
        vocab_size=len(vocabulary.tokenizer) - fewer, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=tied, eos_token_id=vocabulary.stop,
    )  # fmt: skip
    torch.manual_seed(0)
    base: Any
    if BACKBONE == "smolvlm":
        config = SmolVLMConfig(text_config=text, tie_word_embeddings=tied, **TINY_TOWER)
        base = SmolVLMForConditionalGeneration(config)
    else:
        base = LlamaForCausalLM(text)
    base.generation_config.eos_token_id = stops or vocabulary.stop
    base.save_pretrained(folder)
    vocabulary.tokenizer.save_pretrained(folder)
    return base
