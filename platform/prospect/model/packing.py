"""Packed attention: several clips in one row without padding, each attending to itself only.

Shapes: N tokens of all clips together, Hq and Hkv query and key heads, Dh head width.
"""

import inspect
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
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


@dataclass
class AttentionGuide:
    """Measures where the first head of the last layer looks and what it finds there, for the loss that guides it.

    Guided alignment (Chen et al. 2016, "Guided Alignment Training for Topic-Aware Neural Machine Translation", section
    3.2): the cross-entropy between the head's attention and the place where the word stands that comes next.

    Attributes:
        lookups, looked_up: [L] positions that look, and where each of them should look.
        loss: sum over all lookups, after the layer's forward pass.
        found: [L, H] what the head adds to the residual stream where it looks at the right place alone.
    """

    lookups: Tensor
    looked_up: Tensor
    loss: Tensor = field(default_factory=lambda: torch.zeros(()))
    found: Tensor = field(default_factory=lambda: torch.zeros(0, 0))

    def measure(
        self, module: LlamaAttention, query: Tensor, key: Tensor, value: Tensor, scaling: float, offsets: Tensor
    ) -> None:
        """Set `loss` and `found` in the last layer, from queries [1, Hq, N, Dh], keys and values [1, Hkv, N, Dh]."""
        if module.layer_idx != module.config.num_hidden_layers - 1:
            return
        # The projection itself, and not its weight, which ZeRO-3 gathers for the module's own call alone.
        self.found = module.o_proj(F.pad(value[0, 0, self.looked_up], (0, module.o_proj.in_features - value.shape[-1])))
        scores = (query[0, 0, self.lookups] @ key[0, 0].T).float() * scaling
        first = offsets[torch.searchsorted(offsets, self.lookups.int(), right=True) - 1]
        columns = torch.arange(key.shape[2], device=key.device)
        hidden = (columns < first[:, None]) | (columns > self.lookups[:, None])
        self.loss = F.cross_entropy(scores.masked_fill(hidden, -torch.inf), self.looked_up, reduction="sum")


@dataclass(frozen=True)
class Packing:
    """Boundaries of the clips in a row of N tokens.

    Attributes:
        lengths: tokens of each clip; their sum is N.
        offsets: [clips + 1] int32, the first token of each clip, then N.
        position_ids: [1, N], from 0 in each clip.
        guide: what one head is guided by, if anything.
    """

    lengths: tuple[int, ...]
    offsets: Tensor
    position_ids: Tensor
    guide: AttentionGuide | None = None

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
    if packing.guide is not None:
        packing.guide.measure(module, query, key, value, scaling, packing.offsets)
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
