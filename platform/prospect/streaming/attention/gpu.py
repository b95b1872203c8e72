"""Attention that reads pages by block tables: `varlen` on CUDA, `flex` wherever torch compiles FlexAttention."""

from collections.abc import Sequence
from functools import cache
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from torch.nn.functional import pad

from prospect.streaming.attention.interface import Chunk
from prospect.streaming.kv_cache.pool import PagePool

QUERY_BLOCK = 128
"""Queries in one block of FlexAttention; a block never holds queries of two sessions."""


class VarlenOverPages:
    """`torch.nn.attention.varlen` of the packed last tokens of S sequences, over their pages; on CUDA.

    On Hopper and data-centre Blackwell cuDNN runs it, with pages of any power of two; elsewhere Flash Attention 2
    does, with pages of a multiple of 256 tokens.

    Args:
        starts: int32 [S + 1] where each sequence's queries begin.
        max_new: most queries of one sequence.
        ends: int32 [S] keys of each sequence, the new ones included.
        max_keys: most keys of one sequence; W pages hold them.
        tables: int32 [S, W] pages.
    """

    def __init__(self, starts: Tensor, max_new: int, ends: Tensor, max_keys: int, tables: Tensor) -> None:
        self._starts, self._max_new, self._ends, self._max_keys, self._tables = starts, max_new, ends, max_keys, tables
        # Redundant beside tables and ends, but Flash Attention 2 refuses starts of queries without starts of keys.
        self._key_starts = pad(ends.cumsum(0, dtype=torch.int32), (1, 0))

    def __call__(self, query: Tensor, keys: Tensor, values: Tensor, scaling: float) -> Tensor:
        from torch.nn.attention.varlen import varlen_attn

        out = varlen_attn(
            query.contiguous(),
            keys,
            values,
            self._starts,
            self._key_starts,
            self._max_new,
            self._max_keys,
            scale=scaling,
            window_size=(-1, 0),  # causal, aligned to the last key
            enable_gqa=True,
            seqused_k=self._ends,
            block_table=self._tables,
        )
        assert isinstance(out, Tensor)
        return out


class VarlenAttention(VarlenOverPages):
    """The `varlen` backend."""

    def __init__(self, pool: PagePool, chunks: Sequence[Chunk]) -> None:
        counts = torch.tensor([chunk.num_tokens for chunk in chunks], dtype=torch.int32)
        ends = torch.tensor([chunk.end for chunk in chunks], dtype=torch.int32)
        max_keys = int(ends.max())
        width = pool.pages_for(max_keys)
        tables = [
            [*chunk.table.pages[:width], *[pool.num_pages] * (width - len(chunk.table.pages))] for chunk in chunks
        ]
        super().__init__(
            pad(counts.cumsum(0, dtype=torch.int32), (1, 0)).to(pool.device),
            int(counts.max()),
            ends.to(pool.device),
            max_keys,
            torch.tensor(tables, dtype=torch.int32, device=pool.device),
        )


class FlexAttention:
    """The `flex` backend: block-sparse over pages, one call for all sessions with equally many new tokens."""

    def __init__(self, pool: PagePool, chunks: Sequence[Chunk]) -> None:
        self._pool = pool
        starts, start = [], 0
        for chunk in chunks:
            starts.append(start)
            start += chunk.num_tokens
        order = sorted(range(len(chunks)), key=lambda i: chunks[i].num_tokens)
        self._calls: list[tuple[Tensor, BlockMask]] = []
        for num_tokens, group in groupby(order, key=lambda i: chunks[i].num_tokens):
            members = list(group)
            rows = torch.tensor([[starts[i] + t for t in range(num_tokens)] for i in members], device=pool.device)
            self._calls.append((rows, self._mask([chunks[i] for i in members], num_tokens)))

    def __call__(self, query: Tensor, keys: Tensor, values: Tensor, scaling: float) -> Tensor:
        flat_keys, flat_values = (pages.flatten(0, 1).transpose(0, 1).unsqueeze(0) for pages in (keys, values))
        result = torch.empty_like(query)
        for rows, mask in self._calls:
            out = compiled_flex(query.device.type)(
                query[rows].transpose(1, 2),
                flat_keys,
                flat_values,
                block_mask=mask,
                scale=scaling,
                enable_gqa=query.shape[1] != keys.shape[2],
            )
            result[rows] = out.transpose(1, 2)
        return result

    def _mask(self, chunks: Sequence[Chunk], num_tokens: int) -> BlockMask:
        """Return which pages each session's queries read, and which keys of these."""
        pool, size, num_blocks = self._pool, self._pool.page_size, -(-num_tokens // QUERY_BLOCK)
        used = [pool.pages_for(chunk.end) for chunk in chunks]
        indices = torch.full((len(chunks), pool.num_pages + 1), pool.num_pages, dtype=torch.int32)
        order = torch.full((len(chunks), pool.num_pages + 1), -1)
        for row, (chunk, count) in enumerate(zip(chunks, used, strict=True)):
            pages = torch.tensor(chunk.table.pages[:count])
            indices[row, :count] = pages.int()
            order[row, pages] = torch.arange(count)
        order, past = order.to(pool.device), torch.tensor([chunk.past for chunk in chunks], device=pool.device)

        def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            page = order[batch, key // size]
            return (page >= 0) & (page * size + key % size <= past[batch] + query)

        counts = torch.tensor(used, dtype=torch.int32, device=pool.device)[:, None, None]
        return BlockMask.from_kv_blocks(
            counts.expand(-1, 1, num_blocks).contiguous(),
            indices.to(pool.device)[:, None, None].expand(-1, 1, num_blocks, -1).contiguous(),
            BLOCK_SIZE=(QUERY_BLOCK, size),
            mask_mod=sees,
            seq_lengths=(num_tokens, (pool.num_pages + 1) * size),
            compute_q_blocks=False,
        )


@cache
def compiled_flex(device_type: str) -> Any:
    """Compile FlexAttention: on a GPU once for all shapes, on a CPU for each shape."""
    # torch 2.15 generates C++ for dynamic shapes that does not compile: `cur_kvSplitSize0` is not declared.
    return torch.compile(flex_attention, dynamic=device_type != "cpu")
