"""Which dialogue holds which slot: admission, parking, shared prefixes. Nothing of devices.

A dialogue under way is a `Row`. It holds a slot while it writes. While it waits for an answer it
keeps the slot until another row needs one; then its cache is moved to the store if there is a free
place, and dropped otherwise, to be fed again when the answer is there.

Every decision follows from what was asked of the scheduler before, so that hosts that see the same
answers in the same order decide the same.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections import deque
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from tarl_jax.rollout.sampling import Sampling

BLOCK = 16  # tokens; common prefixes are found in multiples of it


def key_of(sound: np.ndarray) -> int:
    """A negative number for a clip, or for what was made of one: others have others."""
    return ~int.from_bytes(hashlib.sha256(sound.tobytes()).digest()[:7])


@dataclasses.dataclass(frozen=True, eq=False)
class SpokenInputs:
    """What the decoder reads at some tokens of a context, where the user speaks.

    Attributes:
      first: position of the first of them.
      inputs: float32 [tokens, D]; in place of the tokens.
      clip: that the inputs were made of.
      key: negative, its own (`key_of`).
    """

    first: int
    inputs: np.ndarray
    clip: np.ndarray
    key: int

    @property
    def end(self) -> int:
        return self.first + len(self.inputs)

    def behind(self, place: int) -> SpokenInputs:
        """What of it is at `place` or later, counted from there."""
        gone = max(place - self.first, 0)
        return SpokenInputs(
            self.first + gone - place, self.inputs[gone:], self.clip, self.key - gone
        )


@dataclasses.dataclass(eq=False)
class Row:
    """A dialogue under way.

    Attributes:
      index: of the episode, in the order of the run.
      seed: of its sampling.
      tokens: of its present context: fed, or about to be.
      fed: how many of them are in the cache.
      dropped: tokens that were once in the context and have left it; sampling is keyed by position
        plus this number, so that no random number is used twice.
      shared: leading tokens that all dialogues of its kind begin with.
      sampling: how its tokens are drawn.
      limit: the most tokens of a turn.
      slot: where it is in the batch, or None.
      place: where its cache is in the store, or None.
      asking: whether it waits for an answer.
      written: tokens of the turn being written, which are the last of `tokens`.
      log_probs, drawn_log_probs: of those, as in `workers.Turn`.
      syntax: where in the grammar they lead (`grammar.py`).
      spoken: what some of `tokens` sound like, in order.
      read: tokens that were fed since its last answer, those that it wrote left out.
      used: when it was last written, in seconds of any clock; where rows may never be answered, the
        one that was longest not used makes room first.
      reading: it is fed, and writes nothing behind that; its `limit` is 0.
    """

    index: int
    seed: int
    tokens: list[int] = dataclasses.field(default_factory=list)
    fed: int = 0
    dropped: int = 0
    shared: int = 0
    sampling: Sampling = dataclasses.field(default_factory=Sampling)
    limit: int = 0
    slot: int | None = None
    place: int | None = None
    asking: bool = True
    written: int = 0
    log_probs: list[float] = dataclasses.field(default_factory=list)
    drawn_log_probs: list[float] = dataclasses.field(default_factory=list)
    syntax: int = 0
    spoken: list[SpokenInputs] = dataclasses.field(default_factory=list)
    read: int = 0
    used: float = 0.0
    reading: bool = False
    blocks: list[int] = dataclasses.field(default_factory=list)  # its entries in the index
    # Where its cache is in pages: they, a hash for each full one that is known, whose they are.
    pages: list[int] = dataclasses.field(default_factory=list)
    chain: list[int] = dataclasses.field(default_factory=list)
    shard: int = 0

    @property
    def pending(self) -> int:
        """Tokens to feed before it can write; the newest one is fed by writing."""
        return len(self.tokens) - 1 - self.fed

    @property
    def keys(self) -> list[int]:
        """`keys_of` its context."""
        return keys_of(self.tokens, self.spoken)


def keys_of(tokens: list[int], spoken: Sequence[SpokenInputs]) -> list[int]:
    """The tokens, those of sound told apart by their clip: equal keys, equal caches."""
    if not spoken:
        return tokens
    keys = list(tokens)
    for sound in spoken:
        keys[sound.first : sound.end] = range(sound.key, sound.key - len(sound.inputs), -1)
    return keys


def extend_context(
    row: Row, tokens: list[int], keep: int | None, spoken: Sequence[SpokenInputs]
) -> None:
    """The row as it is when it has its answer, and is about to write; see `Scheduler.answered`."""
    if keep is not None and keep < len(row.tokens):
        row.dropped += len(row.tokens) - keep
        del row.tokens[keep:]
        row.fed = min(row.fed, keep)
        row.spoken = [
            dataclasses.replace(sound, inputs=sound.inputs[: keep - sound.first])
            for sound in row.spoken if sound.first < keep
        ]
    row.spoken += [dataclasses.replace(s, first=len(row.tokens) + s.first) for s in spoken]
    row.tokens += tokens
    row.asking, row.written, row.log_probs, row.drawn_log_probs = False, 0, [], []
    row.syntax = row.read = 0


@dataclasses.dataclass(frozen=True)
class Moves:
    """Caches to move, as (from, to) pairs: slots to the store, and from there to slots."""

    park: list[tuple[int, int]]
    unpark: list[tuple[int, int]]


@dataclasses.dataclass(frozen=True)
class Round:
    """Rows to feed together, after the prefixes that they share were copied to their slots.

    from_slots, from_store: (from, to) pairs; the targets are slots.
    keep: (slot, place) pairs, copied to the store once the rows are fed.
    """

    rows: list[Row]
    from_slots: list[tuple[int, int]]
    from_store: list[tuple[int, int]]
    keep: list[tuple[int, int]]


class Scheduler:
    """Holds the rows of a run; see the module's docstring.

    Args:
      slots: of the batch.
      parked: places of the store for rows that wait for an answer.
      prefixes: further places, for prefixes that all dialogues of a kind share.
      share: the shortest common prefix that is copied instead of fed; 0: never.
    """

    def __init__(self, slots: int, parked: int = 0, prefixes: int = 0, share: int = 0):
        self.slots: list[Row | None] = [None] * slots
        self.ready: deque[Row] = deque()
        self._away = 0  # rows that ask and hold no slot
        self._places: list[int] = list(range(parked))[::-1]  # free ones
        self._kept: deque[Row] = deque()  # shared prefixes in the store, the oldest first
        self._kept_places = list(range(parked, parked + prefixes))[::-1]
        self._share = share
        self._index = _PrefixIndex()

    @property
    def in_slots(self) -> list[Row]:
        return [row for row in self.slots if row is not None]

    @property
    def writing(self) -> list[Row]:
        """Rows that write when next sampled."""
        return [row for row in self.slots if row is not None and not row.asking]

    @property
    def going(self) -> bool:
        return bool(self.ready or self._away or any(self.slots))

    @property
    def all_in_slots(self) -> bool:
        return not self.ready and not self._away

    def begin(self, row: Row) -> None:
        """A row whose first tokens were asked for, or which has some from an earlier run."""
        if row.asking:
            self._away += 1
        else:
            self.ready.append(row)

    def answered(
        self, row: Row, tokens: list[int], keep: int | None = None,
        spoken: Sequence[SpokenInputs] = (),
    ) -> None:
        """The tokens that follow; `keep`: how many of the present ones stay, None: all.

        spoken: what some of `tokens` sound like, placed from their start.
        """
        if keep is not None and keep < len(row.blocks) * BLOCK:
            self._index.remove(row)
        extend_context(row, tokens, keep, spoken)
        if row.slot is None:
            self._away -= 1
            self.ready.append(row)

    def ended(self, row: Row) -> None:
        """The row's dialogue is over."""
        if row.slot is None:
            self._away -= 1
        self._leave(row)

    def _leave(self, row: Row) -> None:
        if row.slot is not None:
            self.slots[row.slot] = None
            row.slot = None
        if row.place is not None:
            self._places.append(row.place)
            row.place = None
        self._index.remove(row)

    def free_slots(self) -> int:
        """Slots for rows that are not begun yet, those of asking rows included."""
        taken = sum(not row.asking for row in self.in_slots) + len(self.ready)
        return len(self.slots) - taken

    def admit(self) -> Moves:
        """Gives slots to the rows that are ready; rows that wait make room for them."""
        moves = Moves([], [])
        free = [slot for slot, row in enumerate(self.slots) if row is None]
        lacking = min(len(self.ready), len(self.slots)) - len(free)
        if lacking > 0:
            # The shortest first: they are the cheapest to move or to feed again.
            idle = sorted((r for r in self.in_slots if r.asking),
                          key=lambda r: (r.used, r.fed, r.index))
            for row in idle[:lacking]:
                assert row.slot is not None
                free.append(row.slot)
                self._set_aside(row, moves)
        for slot in sorted(free):
            if not self.ready:
                break
            row = self.ready.popleft()
            if row.place is not None:
                moves.unpark.append((row.place, slot))
                self._places.append(row.place)
                row.place = None
            row.slot, self.slots[slot] = slot, row
        return moves

    def _set_aside(self, row: Row, moves: Moves) -> None:
        slot = row.slot
        assert slot is not None
        self.slots[slot], row.slot = None, None
        self._away += 1
        if self._places:
            row.place = self._places.pop()
            moves.park.append((slot, row.place))
        else:
            row.fed = 0
            self._index.remove(row)

    def shrink(self, size: int) -> list[int]:
        """The slots that a batch of `size` keeps, renumbered; there are no more rows than that."""
        busy = [slot for slot, row in enumerate(self.slots) if row is not None]
        idle = [slot for slot, row in enumerate(self.slots) if row is None]
        keep = (busy + idle)[:size]
        self.slots = [self.slots[slot] for slot in keep]
        for slot, row in enumerate(self.slots):
            if row is not None:
                row.slot = slot
        return keep

    def rounds(self) -> Iterator[Round]:
        """What to feed now, in order: a row is fed before the rows that share its prefix."""
        waiting = [row for row in self.writing if row.pending > 0 or not row.written]
        if not self._share:
            if waiting:
                yield Round(waiting, [], [], [])
            return
        depth: dict[Row, int] = {}
        plan: list[Round] = []
        for row in waiting:
            level = 0
            source, length = (None, 0) if row.fed else self._index.longest(row)
            if source is not None and length >= self._share:
                level = depth.get(source, -1) + 1
            while len(plan) <= level:
                plan.append(Round([], [], [], []))
            depth[row] = level
            plan[level].rows.append(row)
            if source is not None and length >= self._share:
                row.fed = length
                assert row.slot is not None
                if source.slot is not None:
                    plan[level].from_slots.append((source.slot, row.slot))
                else:
                    assert source.place is not None
                    plan[level].from_store.append((source.place, row.slot))
            if not row.blocks:
                self._index.add(row, len(row.tokens) - 1)
                self._keep_prefix(row, plan[level])
        yield from plan

    def _keep_prefix(self, row: Row, after: Round) -> None:
        """Puts the prefix of the row's kind into the store, where it is not there yet."""
        if row.shared < self._share or not (self._kept or self._kept_places):
            return
        prefix = row.tokens[: row.shared]
        if any(kept.tokens == prefix for kept in self._kept):
            return
        if self._kept_places:
            place = self._kept_places.pop()
        else:
            oldest = self._kept.popleft()
            assert oldest.place is not None
            place = oldest.place
            self._index.remove(oldest)
        kept = Row(-1, 0, prefix, fed=len(prefix), place=place)
        self._kept.append(kept)
        self._index.add(kept, len(prefix))
        assert row.slot is not None
        after.keep.append((row.slot, place))


class _PrefixIndex:
    """Finds the row in the cache that begins with the most tokens of another."""

    def __init__(self) -> None:
        self._rows: dict[int, list[Row]] = {}

    def add(self, row: Row, length: int) -> None:
        """`row` holds its first `length` tokens, or will by the time they are copied."""
        row.blocks = list(_chain(row.keys[:length]))
        for block in row.blocks:
            self._rows.setdefault(block, []).append(row)

    def remove(self, row: Row) -> None:
        for block in row.blocks:
            rows = self._rows[block]
            rows.remove(row)
            if not rows:
                del self._rows[block]
        row.blocks = []

    def longest(self, row: Row) -> tuple[Row | None, int]:
        """(a row, how many leading tokens it has in common with `row`, its newest left out)."""
        found, length = None, 0
        keys = row.keys
        for block in _chain(keys[:-1]):
            if block not in self._rows:
                break
            found, length = self._rows[block][0], length + BLOCK
        # Hashes may collide; tokens do not.
        if found is None or found.keys[:length] != keys[:length]:
            return None, 0
        return found, length


def _chain(tokens: Sequence[int]) -> Iterable[int]:
    """A hash for each full block, of it and all before it."""
    value = 0
    for end in range(BLOCK, len(tokens) + 1, BLOCK):
        value = hash((value, *tokens[end - BLOCK : end]))
        yield value
