"""A SmolVLM of a few thousand parameters, saved as the published ones are: class, template of parts, tower and all."""

from pathlib import Path

import torch
from transformers import PreTrainedTokenizerFast, SmolVLMConfig, SmolVLMForConditionalGeneration

from prospect.dialogue.vocabulary import Vocabulary
from prospect.model.configuration import tiny_llama
from prospect.model.settings import TinyGeometry
from prospect.vision.smolvlm import TINY_TOWER

WIDTH = 64
PARTS_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}:"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %} {{ line['text'] }}{% endif %}{% endfor %}"
    "<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)
"""Like SmolVLM2's, which loses whatever is not in parts."""


def smolvlm_tokenizer(vocabulary: Vocabulary) -> PreTrainedTokenizerFast:
    """The tests' tokenizer with the special tokens of SmolVLM2; `<image>` is among them."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=vocabulary.tokenizer.backend_tokenizer,
        bos_token="<|im_start|>",
        eos_token="<end_of_utterance>",
        pad_token="<|im_end|>",
    )
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>", "<fake_token_around_image>"]})
    tokenizer.chat_template = PARTS_TEMPLATE
    return tokenizer


def smolvlm_config(tokenizer: PreTrainedTokenizerFast) -> SmolVLMConfig:
    tiny = TinyGeometry(hidden_size=WIDTH, intermediate_size=128, num_layers=2, num_heads=4)
    text = tiny_llama(tiny, vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id)
    image = tokenizer.convert_tokens_to_ids("<image>")
    return SmolVLMConfig(text_config=text, image_token_id=image, tie_word_embeddings=True, **TINY_TOWER)


def save_smolvlm(folder: Path, vocabulary: Vocabulary, shards: str = "50GB") -> SmolVLMForConditionalGeneration:
    """Save a random one with its tokenizer; returns it."""
    tokenizer = smolvlm_tokenizer(vocabulary)
    torch.manual_seed(0)
    model = SmolVLMForConditionalGeneration(smolvlm_config(tokenizer)).eval()
    model.save_pretrained(folder, max_shard_size=shards)
    tokenizer.save_pretrained(folder)
    return model
