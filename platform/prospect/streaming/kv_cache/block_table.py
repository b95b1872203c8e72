"""The block table: which pages of the pool hold a session's keys and values.

Shapes: P pages of Z tokens, H the model's width.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from prospect.streaming.kv_cache.pool import PagePool


class BlockTable:
    """The pages of one session, and how many tokens they hold.

    Args:
        pool: of pages.
        limit: most tokens of the session.
        shares: whether it shares pages of equal prefixes with other sessions.
    """

    def __init__(self, pool: PagePool, limit: int, shares: bool = True) -> None:
        self._pool, self._limit, self._shares = pool, limit, shares
        self.pages: list[int] = []
        self.length = 0

    def reserve(self, num_tokens: int) -> None:
        """Make room for `num_tokens` more, in pages that no other session reads.

        Raises:
            OutOfPagesError: the pool has no page left.
        """
        needed, size = self.length + num_tokens, self._pool.page_size
        assert needed <= self._limit, f"{needed} tokens exceed the session's limit of {self._limit}"
        if self.length % size:
            self.pages[self.length // size] = self._pool.writable(self.pages[self.length // size])
        while len(self.pages) * size < needed:
            self.pages.append(self._pool.allocate(self.pages[-1] if self.pages else None))

    def commit(self, num_tokens: int) -> None:
        self.length += num_tokens
        assert self.length <= len(self.pages) * self._pool.page_size

    def truncate(self, length: int) -> None:
        """Forget the tokens from position `length` on; no key is moved."""
        assert 0 <= length <= self.length
        kept = self._pool.pages_for(length)
        for page in self.pages[kept:]:
            self._pool.release(page)
        del self.pages[kept:]
        self.length = length

    def cut(self, start: int, stop: int) -> None:
        """Remove the tokens [start, stop); those behind move up and keep the keys of their old positions."""
        size, moved = self._pool.page_size, self.length - stop
        for index in range(start // size, self._pool.pages_for(start + moved)):
            self.pages[index] = self._pool.writable(self.pages[index])
        source, target = self.slots(stop, moved), self.slots(start, moved)
        for pages in (*self._pool.keys, *self._pool.values):
            flat = pages.flatten(0, 1)
            flat[target] = flat[source]
        self.truncate(start + moved)

    def reuse_prefix(self, ids: Sequence[int]) -> Tensor | None:
        """Start the empty table with the pages of the longest known prefix of `ids[:-1]`.

        Returns its hidden states [length, H]; None where no prefix is known.
        """
        assert not self.pages
        found = self._pool.prefixes.find(ids[:-1]) if self._shares else []
        for page, _ in found:
            self._pool.retain(page)
        self.pages = [page for page, _ in found]
        self.length = len(found) * self._pool.page_size
        return torch.cat([hidden for _, hidden in found]) if found else None

    def share_prefix(self, ids: Sequence[int], hidden: Tensor) -> None:
        """Offer the full pages of `ids` [n], with which this table starts, to other tables; `hidden` is [n, H]."""
        if self._shares:
            self._pool.prefixes.add(self.pages, ids, hidden)

    def slots(self, start: int, num_tokens: int) -> list[int]:
        """Return the pool's slots [P * Z] of `num_tokens` tokens from position `start` on."""
        size = self._pool.page_size
        if num_tokens == 1:
            return [self.pages[start // size] * size + start % size]
        return [self.pages[t // size] * size + t % size for t in range(start, start + num_tokens)]

    def extents(self, num_tokens: int) -> Iterator[tuple[int, int]]:
        """Yield the first `num_tokens` tokens as extents of contiguous slots: (first slot, number of slots)."""
        size, first, end = self._pool.page_size, 0, self._pool.pages_for(num_tokens)
        for index in range(1, end + 1):
            if index == end or self.pages[index] != self.pages[index - 1] + 1:
                tokens = min(num_tokens, index * size) - first * size
                yield self.pages[first] * size, tokens
                first = index
