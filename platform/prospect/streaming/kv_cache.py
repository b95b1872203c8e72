"""Keys and values of one session, and the attention that runs many sessions' tokens in one forward pass.

Shapes: N new tokens of all sessions together, Hq and Hkv query and key heads, Dh head width.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from transformers import AttentionInterface, LlamaConfig
from transformers.models.llama.modeling_llama import LlamaAttention

ATTENTION = "prospect_ragged"


class SessionCache:
    """Contiguous keys and values of one session, grown by doubling; bounded by the longest sequence.

    A step writes at the end through `append`, layer by layer; `commit` then counts the tokens once.
    """

    def __init__(self, config: LlamaConfig, dtype: torch.dtype, device: torch.device, limit: int) -> None:
        heads = config.num_key_value_heads or config.num_attention_heads
        head_dim = config.head_dim or config.hidden_size // config.num_attention_heads
        self._shape = (config.num_hidden_layers, 2, heads, 0, head_dim)
        self._limit = limit
        self._buffer = torch.empty(self._shape, dtype=dtype, device=device)
        self.length = 0

    def reserve(self, num_tokens: int) -> None:
        """Makes room for `num_tokens` more."""
        needed, capacity = self.length + num_tokens, self._buffer.shape[3]
        assert needed <= self._limit, f"{needed} tokens exceed the session's limit of {self._limit}"
        if needed <= capacity:
            return
        layers, two, heads, _, head_dim = self._shape
        grown = self._buffer.new_empty((layers, two, heads, min(self._limit, max(needed, 2 * capacity, 64)), head_dim))
        grown[:, :, :, : self.length] = self._buffer[:, :, :, : self.length]
        self._buffer = grown

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Writes [Hkv, n, Dh] behind what is there; returns all keys and values of the layer."""
        end = self.length + keys.shape[1]
        self._buffer[layer, 0, :, self.length : end] = keys
        self._buffer[layer, 1, :, self.length : end] = values
        return self._buffer[layer, 0, :, :end], self._buffer[layer, 1, :, :end]

    def commit(self, num_tokens: int) -> None:
        self.length += num_tokens

    def truncate(self, length: int) -> None:
        """Forgets everything from position `length` on."""
        assert 0 <= length <= self.length
        self.length = length


@dataclass
class RaggedStep:
    """Which tokens of one packed forward pass belong to which session."""

    caches: Sequence[SessionCache]
    lengths: Sequence[int]
    masks: list[Tensor | None] = field(init=False)

    def __post_init__(self) -> None:
        self.masks = [_mask(cache.length, n) for cache, n in zip(self.caches, self.lengths, strict=True)]
        for cache, n in zip(self.caches, self.lengths, strict=True):
            cache.reserve(n)

    def position_ids(self, device: torch.device) -> Tensor:
        """[1, N]: every session counts on from what its cache holds."""
        spans = [
            torch.arange(cache.length, cache.length + n) for cache, n in zip(self.caches, self.lengths, strict=True)
        ]
        return torch.cat(spans).unsqueeze(0).to(device)

    def commit(self) -> None:
        for cache, n in zip(self.caches, self.lengths, strict=True):
            cache.commit(n)


def _mask(past: int, new: int) -> Tensor | None:
    """Causal mask [new, past + new] for a chunk behind a cache; one token needs none."""
    return None if new == 1 else torch.ones(new, past + new, dtype=torch.bool).tril(past)


def ragged_attention(
    module: LlamaAttention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    ragged: RaggedStep,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention of [1, Hq, N, Dh] within each session alone -> [1, N, Hq, Dh]; writes the caches."""
    outputs, start = [], 0
    for cache, length, mask in zip(ragged.caches, ragged.lengths, ragged.masks, strict=True):
        span = slice(start, start + length)
        keys, values = cache.append(module.layer_idx, key[0, :, span], value[0, :, span])
        outputs.append(
            F.scaled_dot_product_attention(
                query[:, :, span],
                keys.unsqueeze(0),
                values.unsqueeze(0),
                attn_mask=None if mask is None else mask.to(query.device),
                scale=scaling,
                enable_gqa=True,
            )
        )
        start += length
    return torch.cat(outputs, dim=2).transpose(1, 2), None


AttentionInterface.register(ATTENTION, ragged_attention)
