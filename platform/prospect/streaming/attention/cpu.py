"""Attention on a CPU: a run of pages is read where it stands, and neighbours are read in one call.

Shapes as in `prospect.streaming.attention.interface`; a session's queries are [Hkv, n, G, Dh] here.
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
"""Runs from which on a copy of the keys costs less than attention in as many parts."""
_CALL_BYTES = 400_000
"""Keys and values that are read in the time that one call of attention takes beside its reading."""


class _Piece(Protocol):
    """Attention of some queries [Hkv, N, G, Dh] over some keys of a layer."""

    def __call__(self, query: Tensor, keys: Tensor, values: Tensor, scaling: float) -> tuple[Tensor, Tensor]:
        """[Hkv, n, G, Dh] and the log of the softmax's denominator [Hkv, n, G], of the piece's n tokens."""
        ...


@dataclass(frozen=True)
class _Extent:
    """Some tokens over some keys that stand together, or over a copy of scattered ones."""

    tokens: slice | Tensor
    keys: slice | Tensor
    """In the pool's rows [P * Z]: a view of one run, or a copy of several."""
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
    """One token each of sessions whose last runs begin stretches next to each other: one call for all of them.

    Every one of them reads as many keys as the longest, later ones hidden.
    """

    tokens: Tensor
    """[S]."""
    first: int
    """Stretch of the first."""
    places: Tensor
    """[S] stretches from the first on: there may be others between."""
    mask: Tensor
    """[B, 1, G, keys] of the B stretches from the first to the last, added to the scores."""
    stretch: int
    """Tokens of one."""

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
    """[B, Hkv, rows, Dh] over [B, Hkv, keys, Dh], and the log of the softmax's denominator [B, Hkv, rows]."""
    out, total = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, keys, values, attn_mask=mask, scale=scaling
    )
    return out, total


class CpuAttention:
    """CPU: a run of pages is read where it stands.

    A beginning that several sessions share is read once for all of them, and a softmax over two runs is put together
    from both by their denominators.
    """

    def __init__(self, pool: PagePool, chunks: Sequence[Chunk]) -> None:
        self._groups, self._heads = pool.groups, pool.keys[0].shape[2]
        self._last: list[tuple[slice | Tensor, _Piece]] = []
        """Over the newest keys; they cover every token once."""
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
            for order, run in enumerate(before):
                earlier[order][run] += range(tokens.start, tokens.stop)
        for group in _grouped(singles, pool):
            self._add(_neighbours(group, pool) if len(group) > 1 else group[0].alone(pool))
        self._earlier = [
            [_Extent(torch.tensor(tokens), slice(first, first + length)) for (first, length), tokens in runs.items()]
            for runs in earlier.values()
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
    """One token whose last run begins a stretch, one of full length."""

    stretch: int
    token: int
    num_keys: int

    def alone(self, pool: PagePool) -> _Extent:
        first = self.stretch * pool.stretch * pool.page_size
        return _Extent(slice(self.token, self.token + 1), slice(first, first + self.num_keys))


def _grouped(singles: Sequence[_Single], pool: PagePool) -> list[list[_Single]]:
    """Those in neighbouring stretches, as long as a call that is saved outweighs the keys that are read in vain."""
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
    """Causal for the last `num_tokens` of `num_keys`, a row a query head of a group; one token needs none."""
    if num_tokens == 1:
        return None
    hidden = torch.ones(num_tokens, num_keys, dtype=torch.bool).triu(num_keys - num_tokens + 1)
    mask = torch.zeros(num_tokens, num_keys, dtype=pool.keys[0].dtype).masked_fill_(hidden, -torch.inf)
    return mask.repeat_interleave(pool.groups, 0)


def _merge(out: Tensor, total: Tensor, tokens: Tensor, more: Tensor, more_total: Tensor) -> None:
    """Adds attention over further keys to [Hkv, N, G, Dh] and its denominators [Hkv, N, G], at `tokens`."""
    known = total[:, tokens]
    both = torch.logaddexp(known, more_total)
    weights = (known - both).exp().unsqueeze(-1), (more_total - both).exp().unsqueeze(-1)
    out[:, tokens] = (out[:, tokens] * weights[0] + more * weights[1]).to(out.dtype)
    total[:, tokens] = both
