"""Llama-3.2-3B and SigLIP-SO400M-384 as published: every parameter has its place and its shape, and none is missing.

The configurations are those of the models' pages; names and shapes follow from them here, and not from our code.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import open_clip
import pytest
import torch

from prospect.dialogue.vocabulary import GRAMMAR_TOKENS
from prospect.model.geometry import base_geometry, empty_model
from prospect.model.settings import ModelSettings
from prospect.vision.settings import VisionSettings

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "bos_token_id": 128000,
    "eos_token_id": [128001, 128008, 128009],
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 3072,
    "initializer_range": 0.02,
    "intermediate_size": 8192,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 24,
    "num_hidden_layers": 28,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 32.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "vocab_size": 128256,
}
LLAMA_PARAMETERS = 3_212_749_824
OURS = ("mm_projector.", "speaking_decision_head.", "dst_update_head.", "dst_state_head.")

SIGLIP = {"hidden": 1152, "intermediate": 4304, "layers": 27, "patch": 14, "image": 384}
SIGLIP_PARAMETERS = 428_225_600

Shapes = dict[str, tuple[int, ...]]


def llama_shapes() -> Shapes:
    """Of the tensors in the published files, which hold no `lm_head`."""
    hidden, inner, width = LLAMA["hidden_size"], LLAMA["intermediate_size"], LLAMA["head_dim"]
    queries, keys = LLAMA["num_attention_heads"] * width, LLAMA["num_key_value_heads"] * width
    layer = {
        "self_attn.q_proj": (queries, hidden),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, queries),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
        "input_layernorm": (hidden,),
        "post_attention_layernorm": (hidden,),
    }
    shapes = {"model.embed_tokens.weight": (LLAMA["vocab_size"], hidden), "model.norm.weight": (hidden,)}
    for index in range(LLAMA["num_hidden_layers"]):
        shapes |= {f"model.layers.{index}.{name}.weight": shape for name, shape in layer.items()}
    return shapes


@pytest.mark.parametrize("named", [True, False], ids=["by name", "by its folder"])
def test_llama_has_every_published_parameter(named: bool, tmp_path: Path) -> None:
    """The vocabulary grows by the grammar's tokens, and `lm_head` is the input embedding."""
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    base = "meta-llama/Llama-3.2-3B-Instruct" if named else str(tmp_path)
    settings = ModelSettings(base=base, dtype="bfloat16")
    model = empty_model(base_geometry(settings), settings, vision_dim=1152)
    published = llama_shapes()
    assert sum(torch.Size(shape).numel() for shape in published.values()) == LLAMA_PARAMETERS
    grown = (LLAMA["vocab_size"] + len(GRAMMAR_TOKENS), LLAMA["hidden_size"])
    found = {name: tuple(tensor.shape) for name, tensor in model.named_parameters()}
    assert {name: shape for name, shape in found.items() if not name.startswith(OURS)} == {
        **published,
        "model.embed_tokens.weight": grown,
    }
    assert model.lm_head.weight is model.text.embed_tokens.weight
    assert {tensor.device.type for tensor in model.parameters()} == {"meta"}
    assert {tensor.dtype for tensor in model.parameters()} == {torch.bfloat16}


def siglip_shapes() -> Iterator[tuple[str, tuple[int, ...]]]:
    """Of the image tower."""
    hidden, inner, patch = SIGLIP["hidden"], SIGLIP["intermediate"], SIGLIP["patch"]

    def linear(name: str, out: int, into: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield from ((f"{name}.weight", (out, into)), (f"{name}.bias", (out,)))

    def norm(name: str) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield from ((f"{name}.weight", (hidden,)), (f"{name}.bias", (hidden,)))

    yield "pos_embed", (1, (SIGLIP["image"] // patch) ** 2, hidden)
    yield from (("patch_embed.proj.weight", (hidden, 3, patch, patch)), ("patch_embed.proj.bias", (hidden,)))
    for index in range(SIGLIP["layers"]):
        block = f"blocks.{index}"
        yield from (*norm(f"{block}.norm1"), *norm(f"{block}.norm2"))
        yield from (*linear(f"{block}.attn.qkv", 3 * hidden, hidden), *linear(f"{block}.attn.proj", hidden, hidden))
        yield from (*linear(f"{block}.mlp.fc1", inner, hidden), *linear(f"{block}.mlp.fc2", hidden, inner))
    yield from norm("norm")
    yield "attn_pool.latent", (1, 1, hidden)
    yield from (*linear("attn_pool.q", hidden, hidden), *linear("attn_pool.kv", 2 * hidden, hidden))
    yield from (*linear("attn_pool.proj", hidden, hidden), *norm("attn_pool.norm"))
    yield from (*linear("attn_pool.mlp.fc1", inner, hidden), *linear("attn_pool.mlp.fc2", hidden, inner))


def test_siglip_has_every_published_parameter() -> None:
    with torch.device("meta"):
        tower = open_clip.create_model(
            VisionSettings().model, load_weights=False, pretrained_text=False, device="meta"
        ).visual
    published = {f"trunk.{name}": shape for name, shape in siglip_shapes()}
    assert sum(torch.Size(shape).numel() for shape in published.values()) == SIGLIP_PARAMETERS
    assert {name: tuple(tensor.shape) for name, tensor in tower.named_parameters()} == published
