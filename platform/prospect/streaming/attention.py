"""Attention of many sessions' tokens in one forward pass, over the pages of a pool.

Shapes: N new tokens of all sessions together, Hq and Hkv query and key heads, G = Hq / Hkv, Dh head width, P pages of
Z tokens. A backend is made once a step, from the tables, and called once a layer.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.models.llama.modeling_llama import LlamaAttention

from prospect.streaming.pages import BlockTable, PagePool

ATTENTION = "prospect_ragged"
_GATHER_FROM = 4
"""Runs from which on a copy of the keys costs less than attention in as many parts."""


@dataclass(frozen=True)
class Part:
    """New tokens of one session behind what its table holds."""

    table: BlockTable
    num_tokens: int

    @property
    def past(self) -> int:
        return self.table.length

    @property
    def end(self) -> int:
        return self.table.length + self.num_tokens


class Attend(Protocol):
    """Attention of one layer: query [N, Hq, Dh] over pages [P, Z, Hkv, Dh] -> [N, Hq, Dh]."""

    def __call__(self, query: Tensor, keys: Tensor, values: Tensor, scaling: float) -> Tensor: ...


class Backend(Protocol):
    """What a step needs of the tables is worked out here, so that layers do not."""

    def __call__(self, pool: PagePool, parts: Sequence[Part]) -> Attend: ...


class RaggedStep:
    """One packed forward pass over the pages of a pool.

    Args:
        pool: of the pages.
        slots: [N] where each token's keys and values go, in the pool's rows [P * Z].
        attend: what each token sees.
    """

    def __init__(self, pool: PagePool, slots: Tensor, attend: Attend) -> None:
        self._pool, self._slots, self._attend = pool, slots, attend

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """Writes keys and values [N, Hkv, Dh], then attends."""
        keys, values = self._pool.keys[layer], self._pool.values[layer]
        keys.flatten(0, 1).index_copy_(0, self._slots, key.to(keys.dtype))
        values.flatten(0, 1).index_copy_(0, self._slots, value.to(values.dtype))
        return self._attend(query.to(keys.dtype), keys, values, scaling).to(query.dtype)


@dataclass(frozen=True)
class _Piece:
    """Attention of some queries over some keys."""

    rows: slice | Tensor
    """In the queries [Hkv, N * G, Dh]."""
    keys: slice | Tensor
    """In the pool's rows [P * Z]: a view of one run, or a copy of several."""
    mask: Tensor | None = None
    """[rows, keys], added to the scores."""

    def __call__(self, query: Tensor, keys: Tensor, values: Tensor, scaling: float) -> tuple[Tensor, Tensor]:
        """[Hkv, rows, Dh] and the log of the softmax's denominator [Hkv, rows]."""
        out, total = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query[:, self.rows].unsqueeze(0),
            keys[self.keys].transpose(0, 1).unsqueeze(0),
            values[self.keys].transpose(0, 1).unsqueeze(0),
            attn_mask=self.mask,
            scale=scaling,
        )
        return out[0], total[0]


class RunAttention:
    """CPU: a run of pages is read where it stands.

    A beginning that several sessions share is read once for all of them, and a softmax over two runs is put together
    from both by their denominators.
    """

    def __init__(self, pool: PagePool, parts: Sequence[Part]) -> None:
        self._groups, self._heads = pool.groups, pool.keys[0].shape[2]
        self._last: list[_Piece] = []
        """Over the newest keys; they cover every query once, in order."""
        earlier: dict[int, dict[tuple[int, int], list[int]]] = defaultdict(lambda: defaultdict(list))
        start = 0
        for part in parts:
            rows = slice(start, start + part.num_tokens * pool.groups)
            *before, (first, length) = part.table.runs(part.end)
            keys: slice | Tensor = slice(first, first + length)
            if len(before) >= _GATHER_FROM or (before and part.end - length > part.past):
                keys, length, before = torch.tensor(part.table.slots(0, part.end)), part.end, []
            self._last.append(_Piece(rows, keys, _mask(length, part.num_tokens, pool)))
            for order, run in enumerate(before):
                earlier[order][run] += range(rows.start, rows.stop)
            start = rows.stop
        self._earlier = [
            [_Piece(torch.tensor(rows), slice(first, first + length)) for (first, length), rows in runs.items()]
            for runs in earlier.values()
        ]

    def __call__(self, query: Tensor, keys: Tensor, values: Tensor, scaling: float) -> Tensor:
        num, num_heads, width = query.shape
        grouped = query.view(num, self._heads, self._groups, width).transpose(0, 1).flatten(1, 2)
        flat_keys, flat_values = keys.flatten(0, 1), values.flatten(0, 1)
        parts = [piece(grouped, flat_keys, flat_values, scaling) for piece in self._last]
        out, total = torch.cat([out for out, _ in parts], 1), torch.cat([total for _, total in parts], 1)
        for pieces in self._earlier:
            parts = [piece(grouped, flat_keys, flat_values, scaling) for piece in pieces]
            rows = torch.cat([piece.rows for piece in pieces if isinstance(piece.rows, Tensor)])
            _merge(out, total, rows, torch.cat([o for o, _ in parts], 1), torch.cat([t for _, t in parts], 1))
        return out.view(self._heads, num, self._groups, width).transpose(0, 1).reshape(num, num_heads, width)


def _mask(num_keys: int, num_tokens: int, pool: PagePool) -> Tensor | None:
    """Causal for the last `num_tokens` of `num_keys`, a row a query head of a group; one token needs none."""
    if num_tokens == 1:
        return None
    hidden = torch.ones(num_tokens, num_keys, dtype=torch.bool).triu(num_keys - num_tokens + 1)
    mask = torch.zeros(num_tokens, num_keys, dtype=pool.keys[0].dtype).masked_fill_(hidden, -torch.inf)
    return mask.repeat_interleave(pool.groups, 0)


def _merge(out: Tensor, total: Tensor, rows: Tensor, more: Tensor, more_total: Tensor) -> None:
    """Adds attention over further keys to [Hkv, R, Dh] and its denominators [Hkv, R], at `rows`."""
    known = total[:, rows]
    both = torch.logaddexp(known, more_total)
    weights = (known - both).exp().unsqueeze(-1), (more_total - both).exp().unsqueeze(-1)
    out[:, rows] = (out[:, rows] * weights[0] + more * weights[1]).to(out.dtype)
    total[:, rows] = both


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
    """What transformers calls: [1, Hq, N, Dh] -> [1, N, Hq, Dh]."""
    q, k, v = (heads[0].transpose(0, 1) for heads in (query, key, value))
    assert module.layer_idx is not None
    return ragged(module.layer_idx, q, k, v, scaling).unsqueeze(0), None


AttentionInterface.register(ATTENTION, _attention)
