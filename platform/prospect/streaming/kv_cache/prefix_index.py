"""Which pages of the pool hold the beginning of which context, so that sessions with the same one share them."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

Key = tuple[int, tuple[int, ...]]
"""(the page before it or -1, the page's tokens): equal tokens behind equal tokens."""


@dataclass
class _Page:
    key: Key
    hidden: Tensor
    children: list[Key] = field(default_factory=list)


class PrefixIndex:
    """Chains of full pages by their tokens. Only text is listed: an image's key would need its features.

    Attributes:
        pages: what is listed, by number.
    """

    def __init__(self, page_size: int) -> None:
        self._page_size = page_size
        self._by_key: dict[Key, int] = {}
        self.pages: dict[int, _Page] = {}

    def find(self, ids: Sequence[int]) -> list[tuple[int, Tensor]]:
        """The longest known beginning of `ids`: its pages with their hidden states [Z, H]."""
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
        """Lists the full pages of `ids`, which stand in `pages` with `hidden` [n, H]; a chain once known stays."""
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
        """Unlists a page and all that continue it; returns them."""
        entry = self.pages.pop(page)
        del self._by_key[entry.key]
        if entry.key[0] in self.pages:
            self.pages[entry.key[0]].children.remove(entry.key)
        return [page, *(gone for key in entry.children for gone in self.remove(self._by_key[key]))]

    def _full(self, ids: Sequence[int]) -> list[tuple[int, ...]]:
        size = self._page_size
        return [tuple(ids[start : start + size]) for start in range(0, len(ids) - size + 1, size)]
