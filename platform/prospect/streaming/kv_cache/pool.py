"""The page pool: keys and values of all sessions, in pages of equal size.

Shapes: P pages of Z tokens, Hkv key heads of width Dh, H the model's width.
"""

import math
import mmap
from collections import OrderedDict
from dataclasses import dataclass

import torch

from prospect.errors import OutOfPagesError
from prospect.model.interface import KVGeometry
from prospect.streaming.kv_cache.prefix_index import PrefixIndex


@dataclass(frozen=True)
class PageCounts:
    """Pages of a pool by use: `used` + `cached` + `free` = all."""

    used: int
    """In at least one block table."""
    shared: int
    """Used by more than one block table."""
    cached: int
    """In no table, but kept for contexts with the same prefix until pages run short."""
    free: int


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Zeros; on a CPU, memory that the system gives as it is first written, so that a pool takes what sessions use."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    memory = mmap.mmap(-1, math.prod(shape) * dtype.itemsize, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(memory, dtype=dtype).view(shape)


class PagePool:
    """Tensors [P + 1, Z, Hkv, Dh] for each layer's keys and for its values; the last page takes padding.

    A table grows into the page after its last one where that is free, and starts at a stretch of `stretch` free pages
    where one is left. Most tables are then contiguous, and attention on a CPU reads them without a copy. Pages start
    as zeros: attention also multiplies masked keys, and uninitialised memory may hold NaN.
    """

    def __init__(
        self,
        geometry: KVGeometry,
        num_pages: int,
        page_size: int,
        stretch: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.groups = geometry.groups
        shape = (num_pages + 1, page_size, geometry.heads, geometry.head_dim)
        self.keys, self.values = ([_zeros(shape, dtype, device) for _ in range(geometry.layers)] for _ in range(2))
        self.num_pages, self.page_size, self.stretch = num_pages, page_size, stretch
        self.prefixes = PrefixIndex(page_size)
        self._holders = [0] * num_pages
        self._occupied = [0] * -(-num_pages // stretch)
        self._cached: OrderedDict[int, None] = OrderedDict()

    @property
    def device(self) -> torch.device:
        return self.keys[0].device

    @property
    def dtype(self) -> torch.dtype:
        return self.keys[0].dtype

    @property
    def bytes_per_page(self) -> int:
        return 2 * len(self.keys) * self.keys[0][0].nbytes

    def pages_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.page_size)

    def counts(self) -> PageCounts:
        used = sum(holders > 0 for holders in self._holders)
        cached = len(self._cached)
        return PageCounts(used, sum(n > 1 for n in self._holders), cached, self.num_pages - used - cached)

    def allocate(self, after: int | None = None) -> int:
        """Return a page for a table whose last page is `after`.

        Raises:
            OutOfPagesError: every page is in a table.
        """
        page = self._choose(after)
        if page in self._cached:
            self._unlist(page)
        self._occupied[page // self.stretch] += 1
        self._holders[page] = 1
        return page

    def retain(self, page: int) -> None:
        """Count one more table that has the page."""
        if page in self._cached:
            del self._cached[page]
        self._holders[page] += 1

    def release(self, page: int) -> None:
        """Count one table less that has the page."""
        assert self._holders[page] > 0, f"page {page} is in no table"
        self._holders[page] -= 1
        if self._holders[page] == 0:
            if page in self.prefixes.pages:
                self._cached[page] = None
            else:
                self._occupied[page // self.stretch] -= 1

    def writable(self, page: int) -> int:
        """Return a page with the same content that one table alone may write to: itself or a copy (copy on write)."""
        if self._holders[page] > 1:
            copy = self.allocate(page)
            for pages in (*self.keys, *self.values):
                pages[copy] = pages[page]
            self.release(page)
            return copy
        if page in self.prefixes.pages:
            self._unlist(page)
        return page

    def forget(self) -> None:
        """Forget the pages that no table has: the next context is computed as on a new pool."""
        while self._cached:
            self._unlist(next(iter(self._cached)))

    def _choose(self, after: int | None) -> int:
        if after is not None and after + 1 < self.num_pages and self._holders[after + 1] == 0:
            return after + 1
        empty = next((i for i, occupied in enumerate(self._occupied) if occupied == 0), None)
        if empty is not None:
            return empty * self.stretch
        idle = self._idle_stretch()
        if idle is not None:
            for page in range(idle * self.stretch, min((idle + 1) * self.stretch, self.num_pages)):
                if page in self._cached:
                    self._unlist(page)
            return idle * self.stretch
        free = next((p for p, n in enumerate(self._holders) if n == 0 and p not in self._cached), None)
        if free is not None:
            return free
        if not self._cached:
            raise OutOfPagesError(f"KV cache: all {self.num_pages} pages of {self.page_size} tokens are in use")
        return next(iter(self._cached))

    def _idle_stretch(self) -> int | None:
        """Return the stretch with the oldest cached pages among those without a page in a table."""
        stretches = (page // self.stretch for page in self._cached)
        return next((i for i in stretches if not any(self._holders[i * self.stretch : (i + 1) * self.stretch])), None)

    def _unlist(self, page: int) -> None:
        """Remove a page, and the pages that continue it, from the prefix index."""
        for gone in self.prefixes.remove(page):
            if gone in self._cached:
                del self._cached[gone]
                self._occupied[gone // self.stretch] -= 1
