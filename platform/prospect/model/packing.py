"""Packed attention: several clips in one row without padding, each attending to itself only.

Shapes: N tokens of all clips together, Hq and Hkv query and key heads, Dh head width.
"""

import inspect
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface
from transformers.models.llama.modeling_llama import LlamaAttention

ATTENTION = "prospect_packed"

_GQA = {"enable_gqa": True} if "enable_gqa" in inspect.signature(varlen_attn).parameters else {}
"""Torch before 2.12 supports grouped-query attention without an argument."""


@dataclass(frozen=True)
class Packing:
    """Boundaries of the clips in a row of N tokens.

    Attributes:
        lengths: tokens of each clip; their sum is N.
        offsets: [clips + 1] int32, the first token of each clip, then N.
        position_ids: [1, N], from 0 in each clip.
    """

    lengths: tuple[int, ...]
    offsets: Tensor
    position_ids: Tensor

    @classmethod
    def of(cls, lengths: Sequence[int], device: torch.device | str) -> "Packing":
        offsets = torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32)
        positions = torch.cat([torch.arange(length) for length in lengths]).unsqueeze(0)
        return cls(tuple(lengths), offsets.to(device), positions.to(device))


def packed_attention(
    module: LlamaAttention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    packing: Packing,
    **_: Any,
) -> tuple[Tensor, None]:
    """Causal attention of [1, Hq, N, Dh] within each clip -> [1, N, Hq, Dh].

    On CUDA in half precision one kernel for all clips, otherwise one call for each clip.
    """
    query, key = query.to(value.dtype), key.to(value.dtype)  # rotary embedding under autocast makes them float32
    if query.is_cuda and query.dtype in (torch.bfloat16, torch.float16):
        return _in_one_kernel(query, key, value, scaling, packing), None
    parts = zip(*(tensor.split(packing.lengths, dim=2) for tensor in (query, key, value)), strict=True)
    mixed = [
        F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=True) for q, k, v in parts
    ]
    return torch.cat(mixed, dim=2).transpose(1, 2), None


def _in_one_kernel(query: Tensor, key: Tensor, value: Tensor, scaling: float, packing: Packing) -> Tensor:
    q, k, v = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    offsets, longest = packing.offsets, max(packing.lengths)
    options: dict[str, Any] = {"scale": scaling, "window_size": (-1, 0), **_GQA}
    return cast(Tensor, varlen_attn(q, k, v, offsets, offsets, longest, longest, **options)).unsqueeze(0)


AttentionInterface.register(ATTENTION, packed_attention)
