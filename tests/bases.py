"""A small random base of the tests' backbone, saved as its published ones are."""

from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from prospect.dialogue.vocabulary import Vocabulary
from tests.factories import BACKBONE
from tests.smolvlm import save_smolvlm


def save_base(folder: Path, vocabulary: Vocabulary, tied: bool = True) -> None:
    """Two layers of 64 wide, with tokenizer; `tied`: whether `lm_head` is the input embedding."""
    if BACKBONE == "smolvlm":
        save_smolvlm(folder, vocabulary, tied=tied)
        return
    config = LlamaConfig(
        vocab_size=len(vocabulary.tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=tied, eos_token_id=vocabulary.stop,
    )  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    vocabulary.tokenizer.save_pretrained(folder)
