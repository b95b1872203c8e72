"""Attention on a CPU (`sdpa`): extents of contiguous pages are read in place, neighbouring ones in one call.

Shapes as in `prospect.streaming.attention.interface`; queries are [Hkv, n, G, Dh] here. An extent is a stretch of
contiguous keys in the pool.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from prospect.streaming.attention.interface import Chunk
from prospect.streaming.kv_cache.pool import PagePool

_GATHER_FROM = 4
"""From this many extents before the last one, a copy of the keys costs less than attention in as many parts."""
_CALL_BYTES = 400_000
"""Bytes of keys and values that are read in the time that one more call of attention costs."""


class _Piece(Protocol):
    """Attention of some of a layer's queries [Hkv, N, G, Dh] over some of its keys."""

    def __call__(self, query: Tensor, keys: Tensor, values: Tensor, scaling: float) -> tuple[Tensor, Tensor]:
        """Return [Hkv, n, G, Dh] for the piece's n tokens, and the log of the softmax's denominator [Hkv, n, G]."""
        ...


@dataclass(frozen=True)
class _Extent:
    """Some tokens over one extent of keys, or over a copy of scattered keys."""

    tokens: slice | Tensor
    keys: slice | Tensor
    """In the pool's slots [P * Z]: a slice gives a view, indices give a copy."""
    mask: Tensor | None = None
    """[n * G, keys], added to the scores."""

    def __call__(self, query: Tensor, keys: Tensor, values: Tensor, scaling: float) -> tuple[Tensor, Tensor]:
        mine = query[:, self.tokens]
        flat_keys, flat_values = keys.flatten(0, 1)[self.keys], values.flatten(0, 1)[self.keys]
        out, total = _flash(
            mine.flatten(1, 2)[None], flat_keys.transpose(0, 1)[None], flat_values.transpose(0, 1)[None],
            self.mask, scaling,
        )  # fmt: skip
        return out[0].view_as(mine), total[0].view(mine.shape[:3])


@dataclass(frozen=True)
class _Neighbours:
    """One token each of sessions whose last extents begin neighbouring stretches of the pool, in one call.

    Each token reads as many keys as the longest extent has; keys behind its own extent are masked.
    """

    tokens: Tensor
    """[S]."""
    first: int
    """Stretch of the first session."""
    places: Tensor
    """[S] stretch of each session, counted from the first; stretches between them may belong to others."""
    mask: Tensor
    """[B, 1, G, keys] of the B stretches from the first to the last, added to the scores."""
    stretch: int
    """Tokens of one stretch."""

    def __call__(self, query: Tensor, keys: Tensor, values: Tensor, scaling: float) -> tuple[Tensor, Tensor]:
        width, num_keys = self.mask.shape[0], self.mask.shape[3]
        queries = query.new_zeros(width, query.shape[0], *query.shape[2:])
        queries[self.places] = query[:, self.tokens].transpose(0, 1)
        span = slice(self.first * self.stretch, (self.first + width) * self.stretch)
        several = [
            pages.flatten(0, 1)[span].unflatten(0, (width, self.stretch))[:, :num_keys].transpose(1, 2)
            for pages in (keys, values)
        ]
        out, total = _flash(queries, several[0], several[1], self.mask, scaling)
        return out[self.places].transpose(0, 1), total[self.places].transpose(0, 1)


def _flash(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scaling: float) -> tuple[Tensor, Tensor]:
    """Attend [B, Hkv, rows, Dh] to [B, Hkv, keys, Dh]; return also the log of the denominator [B, Hkv, rows]."""
    out, total = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, keys, values, attn_mask=mask, scale=scaling
    )
    return out, total


class CpuAttention:
    """The `sdpa` backend.

    A prefix that several sessions share is read once for all of them. The softmax over two extents is merged from
    both by their denominators.
    """

    def __init__(self, pool: PagePool, chunks: Sequence[Chunk]) -> None:
        self._groups, self._heads = pool.groups, pool.keys[0].shape[2]
        self._last: list[tuple[slice | Tensor, _Piece]] = []
        """Attention over each chunk's last extent; every token is in exactly one piece."""
        earlier: dict[int, dict[tuple[int, int], list[int]]] = defaultdict(lambda: defaultdict(list))
        singles: list[_Single] = []
        start = 0
        for chunk in chunks:
            tokens = slice(start, start + chunk.num_tokens)
            start = tokens.stop
            *before, (first, length) = chunk.table.extents(chunk.end)
            if len(before) >= _GATHER_FROM or (before and chunk.end - length > chunk.past):
                slots = torch.tensor(chunk.table.slots(0, chunk.end))
                self._add(_Extent(tokens, slots, _mask(chunk.end, chunk.num_tokens, pool)))
                continue
            stretch, behind = divmod(first, pool.stretch * pool.page_size)
            if chunk.num_tokens == 1 and behind == 0 and stretch < pool.num_pages // pool.stretch:
                singles.append(_Single(stretch, tokens.start, length))
            else:
                self._add(_Extent(tokens, slice(first, first + length), _mask(length, chunk.num_tokens, pool)))
            for order, extent in enumerate(before):
                earlier[order][extent] += range(tokens.start, tokens.stop)
        for group in _grouped(singles, pool):
            self._add(_neighbours(group, pool) if len(group) > 1 else group[0].as_extent(pool))
        self._earlier = [
            [_Extent(torch.tensor(tokens), slice(first, first + length)) for (first, length), tokens in extents.items()]
            for extents in earlier.values()
        ]

    def _add(self, piece: "_Extent | _Neighbours") -> None:
        self._last.append((piece.tokens, piece))

    def __call__(self, query: Tensor, keys: Tensor, values: Tensor, scaling: float) -> Tensor:
        num, num_heads, width = query.shape
        grouped = query.view(num, self._heads, self._groups, width).transpose(0, 1)
        out = query.new_empty(self._heads, num, self._groups, width)
        total = query.new_empty(out.shape[:3], dtype=torch.float32)
        for tokens, piece in self._last:
            out[:, tokens], total[:, tokens] = piece(grouped, keys, values, scaling)
        for pieces in self._earlier:
            parts = [piece(grouped, keys, values, scaling) for piece in pieces]
            tokens = torch.cat([piece.tokens for piece in pieces if isinstance(piece.tokens, Tensor)])
            _merge(out, total, tokens, torch.cat([o for o, _ in parts], 1), torch.cat([t for _, t in parts], 1))
        return out.transpose(0, 1).reshape(num, num_heads, width)


@dataclass(frozen=True)
class _Single:
    """One token whose last extent begins a stretch of full length."""

    stretch: int
    token: int
    num_keys: int

    def as_extent(self, pool: PagePool) -> _Extent:
        first = self.stretch * pool.stretch * pool.page_size
        return _Extent(slice(self.token, self.token + 1), slice(first, first + self.num_keys))


def _grouped(singles: Sequence[_Single], pool: PagePool) -> list[list[_Single]]:
    """Group tokens in neighbouring stretches while a saved call outweighs the masked keys that are read for it."""
    worth = _CALL_BYTES // (2 * pool.keys[0][0, 0].nbytes)
    groups: list[list[_Single]] = []
    for single in sorted(singles, key=lambda each: each.stretch):
        joined = [*groups[-1], single] if groups else [single]
        read = (single.stretch - joined[0].stretch + 1) * max(each.num_keys for each in joined)
        if groups and read - sum(each.num_keys for each in joined) <= worth * (len(joined) - 1):
            groups[-1] = joined
        else:
            groups.append([single])
    return groups


def _neighbours(group: Sequence[_Single], pool: PagePool) -> _Neighbours:
    first, longest = group[0].stretch, max(each.num_keys for each in group)
    places = torch.tensor([each.stretch - first for each in group])
    visible = torch.ones(int(places[-1]) + 1, dtype=torch.long)  # one key where no token asks
    visible[places] = torch.tensor([each.num_keys for each in group])
    mask = torch.zeros(len(visible), longest, dtype=pool.keys[0].dtype)
    mask.masked_fill_(torch.arange(longest) >= visible[:, None], -torch.inf)
    return _Neighbours(
        torch.tensor([each.token for each in group]),
        first,
        places,
        mask[:, None, None].expand(-1, -1, pool.groups, -1),
        pool.stretch * pool.page_size,
    )


def _mask(num_keys: int, num_tokens: int, pool: PagePool) -> Tensor | None:
    """Return the causal mask [n * G, keys] of the last `num_tokens` of `num_keys`; a single token needs none."""
    if num_tokens == 1:
        return None
    hidden = torch.ones(num_tokens, num_keys, dtype=torch.bool).triu(num_keys - num_tokens + 1)
    mask = torch.zeros(num_tokens, num_keys, dtype=pool.keys[0].dtype).masked_fill_(hidden, -torch.inf)
    return mask.repeat_interleave(pool.groups, 0)


def _merge(out: Tensor, total: Tensor, tokens: Tensor, more: Tensor, more_total: Tensor) -> None:
    """Merge attention over further keys into `out` [Hkv, N, G, Dh] and `total` [Hkv, N, G] at `tokens`."""
    known = total[:, tokens]
    both = torch.logaddexp(known, more_total)
    weights = (known - both).exp().unsqueeze(-1), (more_total - both).exp().unsqueeze(-1)
    out[:, tokens] = (out[:, tokens] * weights[0] + more * weights[1]).to(out.dtype)
    total[:, tokens] = both
