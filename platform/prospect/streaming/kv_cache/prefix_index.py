"""The prefix index: finds pages of the pool that hold the prefix of a new context, so that sessions share them."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

Key = tuple[int, tuple[int, ...]]
"""(the page before or -1, the page's tokens): equal keys mean equal tokens from the start."""


@dataclass
class _Page:
    key: Key
    hidden: Tensor
    children: list[Key] = field(default_factory=list)


class PrefixIndex:
    """Chains of full pages by their tokens. Only text is listed: an image's key would need its features.

    Attributes:
        pages: the listed pages by number.
    """

    def __init__(self, page_size: int) -> None:
        self._page_size = page_size
        self._by_key: dict[Key, int] = {}
        self.pages: dict[int, _Page] = {}

    def find(self, ids: Sequence[int]) -> list[tuple[int, Tensor]]:
        """Return the pages of the longest known prefix of `ids`, each with its hidden states [Z, H]."""
        found: list[tuple[int, Tensor]] = []
        before = -1
        for tokens in self._full(ids):
            page = self._by_key.get((before, tokens))
            if page is None:
                break
            found.append((page, self.pages[page].hidden))
            before = page
        return found

    def add(self, pages: Sequence[int], ids: Sequence[int], hidden: Tensor) -> None:
        """List the full pages of `ids` [n], held by `pages`, with `hidden` [n, H]; a prefix already known stays."""
        before = -1
        for index, tokens in enumerate(self._full(ids)):
            key, page = (before, tokens), pages[index]
            if self._by_key.setdefault(key, page) != page:
                return
            if page not in self.pages:
                span = slice(index * self._page_size, (index + 1) * self._page_size)
                self.pages[page] = _Page(key, hidden[span].clone())
                if before >= 0:
                    self.pages[before].children.append(key)
            before = page

    def remove(self, page: int) -> list[int]:
        """Unlist a page and all pages that continue it; return them."""
        entry = self.pages.pop(page)
        del self._by_key[entry.key]
        if entry.key[0] in self.pages:
            self.pages[entry.key[0]].children.remove(entry.key)
        return [page, *(gone for key in entry.children for gone in self.remove(self._by_key[key]))]

    def _full(self, ids: Sequence[int]) -> list[tuple[int, ...]]:
        size = self._page_size
        return [tuple(ids[start : start + size]) for start in range(0, len(ids) - size + 1, size)]
