"""Which page of a pool belongs to whom: given, shared, kept for later, taken back. No devices.

A full page whose tokens, and all tokens before them, are known can be found again by them: rows
that begin alike hold the same pages, counted and never copied. A page that nobody holds any more is
kept as long as no one needs it for something else, and found again the same way.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

Key = tuple[int, tuple[int, ...]]  # hash of the tokens before a page, and the page's own


class PagePool:
    """The pages of one shard. Page 0 is nobody's.

    Args:
      count: of pages, page 0 included.
      size: tokens of a page.
    """

    def __init__(self, count: int, size: int):
        self.size = size
        self._free = list(range(1, count))[::-1]
        self._holders = [0] * count
        self._known: dict[Key, int] = {}
        self._keys: dict[int, Key] = {}
        self._kept: OrderedDict[int, None] = OrderedDict()  # held by nobody, the oldest first

    @property
    def available(self) -> int:
        """Pages that can be given now."""
        return len(self._free) + len(self._kept)

    def take(self) -> int:
        """A page for the caller alone. There must be one available."""
        if self._free:
            page = self._free.pop()
        else:
            page, _ = self._kept.popitem(last=False)
            del self._known[self._keys.pop(page)]
        self._holders[page] = 1
        return page

    def find(self, key: Key) -> int | None:
        """The page with these tokens, held by the caller too from now on; None: there is none."""
        page = self._known.get(key)
        if page is not None:
            self._kept.pop(page, None)
            self._holders[page] += 1
        return page

    def know(self, page: int, key: Key) -> None:
        """The page is full of these tokens, or will be by the time that another reads it."""
        if key not in self._known and page not in self._keys:
            self._known[key], self._keys[page] = page, key

    def is_known(self, page: int) -> bool:
        """Whether others may hold the page, so that nothing may be written to it."""
        return page in self._keys

    def release(self, pages: Sequence[int]) -> None:
        """The caller holds these no longer."""
        for page in reversed(pages):  # the last tokens of a sequence are the first to be forgotten
            self._holders[page] -= 1
            if not self._holders[page]:
                if page in self._keys:
                    self._kept[page] = None
                else:
                    self._free.append(page)
