"""The interface of the attention backends, and its registration with transformers.

A backend is made once a step from the chunks that run, and called once a layer.

Shapes: N new tokens of all sessions together, Hq and Hkv query and key heads, G = Hq / Hkv, Dh head width, P pages of
Z tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from torch import Tensor
from transformers import AttentionInterface
from transformers.models.llama.modeling_llama import LlamaAttention

from prospect.streaming.kv_cache.block_table import BlockTable
from prospect.streaming.kv_cache.pool import PagePool

ATTENTION = "prospect_ragged"
"""Name under which transformers finds `RaggedStep`."""


@dataclass(frozen=True)
class Chunk:
    """New tokens of one session, to run behind the tokens that its table holds.

    Attributes:
        table: the session's pages, with room for the new tokens.
        ids: the new tokens.
        features: [num_images, D] features of the image tokens among them; None if no token is an image.
    """

    table: BlockTable
    ids: Sequence[int]
    features: np.ndarray | None = None

    @property
    def num_tokens(self) -> int:
        return len(self.ids)

    @property
    def past(self) -> int:
        """Tokens before the chunk."""
        return self.table.length

    @property
    def end(self) -> int:
        """Tokens up to the chunk's last one."""
        return self.table.length + len(self.ids)


class Attend(Protocol):
    """Attention of one layer: queries [N, Hq, Dh] over pages [P, Z, Hkv, Dh] -> [N, Hq, Dh]."""

    def __call__(self, query: Tensor, keys: Tensor, values: Tensor, scaling: float) -> Tensor: ...


class AttentionBackend(Protocol):
    """Prepares a step: derives from the block tables once what every layer needs."""

    __name__: str

    def __call__(self, pool: PagePool, chunks: Sequence[Chunk]) -> Attend: ...


class RaggedStep:
    """One packed forward pass: writes each layer's new keys and values into the pool, then attends.

    Args:
        pool: of pages.
        slots: [N] where each token's keys and values go, in the pool's slots [P * Z].
        attend: the step's attention.
    """

    def __init__(self, pool: PagePool, slots: Tensor, attend: Attend) -> None:
        self._pool, self._slots, self._attend = pool, slots, attend

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """Write keys and values [N, Hkv, Dh] of a layer, then attend: [N, Hq, Dh] -> [N, Hq, Dh]."""
        keys, values = self._pool.keys[layer], self._pool.values[layer]
        keys.flatten(0, 1).index_copy_(0, self._slots, key.to(keys.dtype))
        values.flatten(0, 1).index_copy_(0, self._slots, value.to(values.dtype))
        return self._attend(query.to(keys.dtype), keys, values, scaling).to(query.dtype)


def _attention(
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
    """The function that transformers calls: [1, Hq, N, Dh] -> [1, N, Hq, Dh]."""
    q, k, v = (heads[0].transpose(0, 1) for heads in (query, key, value))
    assert module.layer_idx is not None
    return ragged(module.layer_idx, q, k, v, scaling).unsqueeze(0), None


AttentionInterface.register(ATTENTION, _attention)
