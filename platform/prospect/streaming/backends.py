"""The attention backends by name."""

import importlib.util

import torch

from prospect.streaming.attention import Backend, RunAttention
from prospect.streaming.paged import FlexAttention, VarlenAttention
from prospect.streaming.settings import AttentionName

BACKENDS: dict[AttentionName, Backend] = {"sdpa": RunAttention, "flex": FlexAttention, "varlen": VarlenAttention}


def attention_backend(name: AttentionName, device: torch.device) -> Backend:
    """The named backend; `auto` takes the one that docs/benchmarks.md has as the fastest on this kind of device."""
    if name != "auto":
        return BACKENDS[name]
    if device.type == "cpu":
        return BACKENDS["sdpa"]
    return BACKENDS["varlen" if importlib.util.find_spec("torch.nn.attention.varlen") else "flex"]
