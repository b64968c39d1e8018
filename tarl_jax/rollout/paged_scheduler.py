"""Which rows hold which pages, and what is fed next. Nothing of devices.

A row holds a slot only while it has something to write; its pages stay its own while it waits for
an answer. Where pages are short, the ones of waiting rows go first, then those of rows that were
begun later: what they held is fed again. The row that was begun first never gives its pages up, so
that there is always one that goes on.

Every decision follows from what was asked of the scheduler before, so that hosts that see the same
answers in the same order decide the same.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Sequence

from tarl_jax.rollout.page_pool import Key, PagePool
from tarl_jax.rollout.scheduler import Row, SpokenInputs, extend_context


@dataclasses.dataclass(eq=False)
class Part:
    """Tokens of one row that a step feeds, its newest included if it writes then."""

    row: Row
    first: int
    count: int

    @property
    def samples(self) -> bool:
        return self.first + self.count == len(self.row.tokens)


class PagedScheduler:
    """Holds the rows of a run; see the module's docstring.

    Args:
      slots: rows that write at a time, in all shards together.
      pools: one per shard.
      share: whether rows that begin alike share pages.
    """

    def __init__(self, slots: int, pools: Sequence[PagePool], share: bool):
        self.slots: list[Row | None] = [None] * slots
        self.ready: deque[Row] = deque()
        self._pools = pools
        self._share = share
        self._rows: dict[int, Row] = {}  # all, by index

    @property
    def in_slots(self) -> list[Row]:
        return [row for row in self.slots if row is not None]

    @property
    def writing(self) -> list[Row]:
        """Rows that write when next sampled."""
        return [row for row in self.in_slots if not row.asking]

    @property
    def going(self) -> bool:
        return bool(self._rows)

    @property
    def all_in_slots(self) -> bool:
        return len(self._rows) == len(self.in_slots)

    def free_slots(self) -> int:
        """Slots for rows that are not begun yet."""
        return len(self.slots) - len(self.writing) - len(self.ready)

    def begin(self, row: Row) -> None:
        """A row whose first tokens were asked for, or which has some from an earlier run."""
        self._rows[row.index] = row
        if not row.asking:
            self.ready.append(row)

    def answered(
        self, row: Row, tokens: list[int], keep: int | None = None,
        spoken: Sequence[SpokenInputs] = (),
    ) -> None:
        """The tokens that follow; `keep`: how many of the present ones stay, None: all.

        spoken: what some of `tokens` sound like, placed from their start.
        """
        extend_context(row, tokens, keep, spoken)
        if keep is not None and row.pages:
            self._cut(row)
        if row.slot is None:
            self.ready.append(row)

    def ended(self, row: Row) -> None:
        """The row's dialogue is over."""
        self._leave(row)
        self._drop(row)
        del self._rows[row.index]

    def _leave(self, row: Row) -> None:
        if row.slot is not None:
            self.slots[row.slot], row.slot = None, None

    def admit(self) -> None:
        """Gives slots to the rows that are ready, in the shard where their pages are.

        A row that asks leaves its slot, and keeps its pages.
        """
        for row in self.in_slots:
            if row.asking:
                self._leave(row)
        for _ in range(len(self.ready)):
            row = self.ready.popleft()
            slot = self._slot_for(row)
            if slot is None:
                self.ready.append(row)
            else:
                row.slot, self.slots[slot] = slot, row

    def _slot_for(self, row: Row) -> int | None:
        width = len(self.slots) // len(self._pools)
        free: dict[int, int] = {}
        for slot, taken in enumerate(self.slots):
            if taken is None:
                free.setdefault(slot // width, slot)
        if row.pages or not free:
            return free.get(row.shard)
        row.shard = max(free, key=lambda shard: (self._pools[shard].available, -shard))
        return free[row.shard]

    # ---- what is fed ------------------------------------------------------------------------

    def mixed(self, budget: int) -> list[list[Part]] | None:
        """What the next step feeds in each shard, at most `budget` tokens; None: nothing pends, or
        nothing of it has pages.

        Rows with tokens to feed in the order in which their dialogues were begun, beside the ones
        that write, with a token each. budget: at least the slots of a shard, and one more.
        """
        if not any(row.pending for row in self.writing):
            return None
        plan: list[list[Part]] = []
        for shard in range(len(self._pools)):
            rows = [row for row in self.writing if row.shard == shard]
            rows.sort(key=lambda row: row.index)
            left = budget - sum(not row.pending for row in rows)
            parts: list[Part] = []
            for row in rows:
                if row.pending and left:
                    left -= self._add(row, left, parts)
            plan.append(parts)
        if not any(plan):
            return None
        for shard, parts in enumerate(plan):
            fed = {part.row for part in parts}
            for row in self.writing:
                if row.shard == shard and row not in fed and not row.pending:
                    self._add(row, 1, parts)
        return plan

    def _add(self, row: Row, most: int, parts: list[Part]) -> int:
        """Adds the row's next tokens, as many as there are pages for; returns how many."""
        if self._share:
            self._find(row)
        wanted = min(len(row.tokens) - row.reading, row.fed + most)
        count = self._make_room(row, wanted, [part.row for part in parts]) - row.fed
        if count > 0:
            parts.append(Part(row, row.fed, count))
            row.fed += count
            row.read += count - (row.fed == len(row.tokens))
            self._know(row)
        return max(count, 0)

    def bursts(self, most: int) -> dict[int, int]:
        """How many tokens the row of each slot may write now, where it is at least one."""
        room: dict[int, int] = {}
        for row in sorted(self.writing, key=lambda row: row.index):
            if row.pending:  # not fed, or its pages went to a row before it
                continue
            wanted = min(row.limit - row.written, most)
            held = self._make_room(row, row.fed + wanted, []) - row.fed
            if held > 0:
                assert row.slot is not None
                room[row.slot] = held
        return room

    def wrote(self, row: Row) -> None:
        """The row's pages are known by what it wrote."""
        self._know(row)

    def _make_room(self, row: Row, length: int, safe: Sequence[Row]) -> int:
        """Pages for the first `length` tokens of the row; returns for how many there are.

        safe: rows that keep theirs.
        """
        pool = self._pools[row.shard]
        while len(row.pages) * pool.size < length:
            if not pool.available and not self._evict(row, safe):
                break
            if pool.available:
                row.pages.append(pool.take())
        return min(length, len(row.pages) * pool.size)

    def _evict(self, row: Row, safe: Sequence[Row]) -> bool:
        """Takes the pages of another row of the shard, if there is one that must give them."""
        others = [
            other for other in self._rows.values()
            if other is not row and other.pages and other.shard == row.shard and other not in safe
        ]
        waiting = [other for other in others if other.slot is None or other.asking]
        later = [other for other in others if other not in waiting and other.index > row.index]
        if waiting:
            self._drop(min(waiting, key=lambda other: (other.used, other.fed, other.index)))
        elif later:
            self._drop(max(later, key=lambda other: other.index))
        else:
            return False
        return True

    def _drop(self, row: Row) -> None:
        self._pools[row.shard].release(row.pages)
        row.pages, row.chain, row.fed = [], [], 0

    def _cut(self, row: Row) -> None:
        """Pages behind the context's new end are given back; a page that others may hold too is
        not written to, so its tokens are fed again.
        """
        pool = self._pools[row.shard]
        if row.fed % pool.size and pool.is_known(row.pages[row.fed // pool.size]):
            row.fed -= row.fed % pool.size
        held = -(-row.fed // pool.size)
        pool.release(row.pages[held:])
        del row.pages[held:], row.chain[row.fed // pool.size :]

    def _find(self, row: Row) -> None:
        """Takes pages that hold what the row would feed next, as long as it only holds such."""
        pool = self._pools[row.shard]
        size = pool.size
        if row.fed != len(row.pages) * size:
            return
        keys = row.keys
        # Its newest token is fed by the step that samples after it.
        while row.fed + size < len(keys):
            page = pool.find(_key(row, keys, size))
            if page is None:
                break
            row.pages.append(page)
            row.chain.append(hash(_key(row, keys, size)))
            row.fed += size

    def _know(self, row: Row) -> None:
        if not self._share:
            return
        pool = self._pools[row.shard]
        keys = row.keys
        while (len(row.chain) + 1) * pool.size <= row.fed:
            key = _key(row, keys, pool.size)
            pool.know(row.pages[len(row.chain)], key)
            row.chain.append(hash(key))


def _key(row: Row, keys: Sequence[int], size: int) -> Key:
    """Of the row's next page that has none."""
    begin = len(row.chain) * size
    return (row.chain[-1] if row.chain else 0, tuple(keys[begin : begin + size]))
