"""Admission, parking and shared prefixes, without any device."""

import random

import pytest

from tarl_jax.rollout.scheduler import BLOCK, Row, Scheduler


def begun(scheduler, index, tokens, **fields):
    """A row that has its first tokens."""
    row = Row(index, index, **fields)
    scheduler.begin(row)
    scheduler.answered(row, list(tokens))
    return row


def feed(scheduler):
    """Does what the engine does in `rounds`; returns them, with the moves as (from, to)."""
    seen = []
    for part in scheduler.rounds():
        seen.append(([row.index for row in part.rows], part.from_slots, part.from_store, part.keep))
        for row in part.rows:
            row.fed = len(row.tokens) - 1
    return seen


def write(row, *tokens, ends=True):
    row.tokens += tokens
    row.fed += len(tokens)
    row.written += len(tokens)
    row.asking = ends


# ---- slots ----------------------------------------------------------------------------------


def test_rows_take_slots_in_the_order_they_became_ready():
    scheduler = Scheduler(2)
    rows = [begun(scheduler, i, [1, 2]) for i in (7, 3, 5)]
    moves = scheduler.admit()
    assert moves.park == [] and moves.unpark == []
    assert [row.slot for row in rows] == [0, 1, None]
    assert scheduler.writing == rows[:2] and not scheduler.all_in_slots
    scheduler.ended(rows[0])
    scheduler.admit()
    assert rows[2].slot == 0 and scheduler.all_in_slots


def test_a_waiting_row_keeps_its_slot_until_another_needs_it():
    scheduler = Scheduler(2)
    first, second = (begun(scheduler, i, [1, 2]) for i in range(2))
    scheduler.admit()
    feed(scheduler)
    write(first, 5)
    scheduler.admit()
    assert first.slot == 0 and scheduler.free_slots() == 1
    third = begun(scheduler, 2, [1, 2])
    moves = scheduler.admit()
    assert moves.park == []  # nowhere to park
    assert first.slot is None and first.fed == 0 and third.slot == 0
    scheduler.answered(first, [6, 7])
    assert first.tokens == [1, 2, 5, 6, 7] and first.pending == 4  # all is fed again
    scheduler.admit()
    assert first.slot is None and second.slot == 1  # who writes is not disturbed
    scheduler.ended(second)
    scheduler.admit()
    assert first.slot == 1


def test_a_parked_cache_comes_back():
    scheduler = Scheduler(1, parked=1)
    first = begun(scheduler, 0, [1, 2, 3])
    scheduler.admit()
    feed(scheduler)
    write(first, 5)
    second = begun(scheduler, 1, [1, 2])
    assert scheduler.admit().park == [(0, 0)]
    assert first.place == 0 and first.fed == 3 and second.slot == 0
    feed(scheduler)
    write(second, 5)
    scheduler.answered(first, [6])
    moves = scheduler.admit()
    # Places that the same call frees are not parked in: moves out come first.
    assert moves.park == [] and moves.unpark == [(0, 0)]
    assert first.slot == 0 and first.place is None and first.pending == 1
    assert second.slot is None and second.fed == 0


def test_the_shortest_waiting_row_makes_room():
    scheduler = Scheduler(2, parked=2)
    long = begun(scheduler, 0, range(50))
    short = begun(scheduler, 1, range(9))
    scheduler.admit()
    feed(scheduler)
    write(long, 5)
    write(short, 5)
    begun(scheduler, 2, [1, 2])
    scheduler.admit()
    assert long.slot == 0 and short.place is not None


def test_an_end_in_the_store_frees_its_place():
    scheduler = Scheduler(1, parked=1)
    previous = None
    for index in range(5):
        row = begun(scheduler, index, [1, 2])
        moves = scheduler.admit()
        assert row.slot == 0 and bool(moves.park) == (index > 0)
        feed(scheduler)
        write(row, 5)
        if previous:
            scheduler.ended(previous)
        previous = row
    assert scheduler.going
    scheduler.ended(row)
    assert not scheduler.going


def test_a_context_may_lose_its_end():
    scheduler = Scheduler(1)
    row = begun(scheduler, 0, [1, 2, 3])
    scheduler.admit()
    feed(scheduler)
    write(row, 4, 5, 6)
    scheduler.answered(row, [6, 7], keep=3)
    assert row.tokens == [1, 2, 3, 6, 7] and row.fed == 3 and row.dropped == 3
    assert row.written == 0 and row.pending == 1


def test_shrinking_keeps_the_rows_and_renumbers_them():
    scheduler = Scheduler(4)
    rows = [begun(scheduler, i, [1, 2]) for i in range(4)]
    scheduler.admit()
    scheduler.ended(rows[0])
    scheduler.ended(rows[2])
    assert scheduler.shrink(2) == [1, 3]
    assert [row.slot for row in (rows[1], rows[3])] == [0, 1]
    assert scheduler.in_slots == [rows[1], rows[3]]


# ---- shared prefixes ------------------------------------------------------------------------

SYSTEM = list(range(100, 100 + 2 * BLOCK))
FIRST, SECOND = [[100 + task] * BLOCK for task in (50, 51)]


def test_what_rows_share_is_fed_once():
    scheduler = Scheduler(4, share=BLOCK)
    prompts = [SYSTEM + FIRST + [1], SYSTEM + SECOND + [2], SYSTEM + FIRST + [3],
               SYSTEM + SECOND + [4]]
    rows = [begun(scheduler, i, prompt) for i, prompt in enumerate(prompts)]
    scheduler.admit()
    rounds = feed(scheduler)
    # The first feeds all; the second copies the system turn; the others copy the whole group's.
    assert [(indices, copies) for indices, copies, *_ in rounds] == [
        ([0], []), ([1, 2], [(0, 1), (0, 2)]), ([3], [(1, 3)]),
    ]
    assert all(row.pending == 0 for row in rows)


def test_the_newest_token_is_never_copied():
    """It is fed by writing, so a copy of the whole prompt would leave nothing to write with."""
    scheduler = Scheduler(2, share=BLOCK)
    rows = [begun(scheduler, i, SYSTEM) for i in range(2)]
    scheduler.admit()
    plan = list(scheduler.rounds())
    assert plan[1].from_slots == [(0, 1)] and rows[1].fed == len(SYSTEM) - BLOCK


@pytest.mark.parametrize("share, copies", [(0, 0), (2 * BLOCK + 1, 0), (2 * BLOCK, 1)])
def test_short_prefixes_are_not_copied(share, copies):
    scheduler = Scheduler(2, share=share)
    for i in range(2):
        begun(scheduler, i, [*SYSTEM, i, i, i])
    scheduler.admit()
    assert sum(len(part.from_slots) for part in scheduler.rounds()) == copies


def test_a_kinds_prefix_outlives_its_rows():
    scheduler = Scheduler(1, prefixes=1, share=BLOCK)
    first = begun(scheduler, 0, SYSTEM + FIRST, shared=len(SYSTEM))
    scheduler.admit()
    assert feed(scheduler) == [([0], [], [], [(0, 0)])]
    scheduler.ended(first)
    begun(scheduler, 1, SYSTEM + SECOND, shared=len(SYSTEM))
    scheduler.admit()
    assert feed(scheduler) == [([1], [], [(0, 0)], [])]


def test_another_kinds_prefix_takes_the_place_of_the_oldest():
    scheduler = Scheduler(1, prefixes=1, share=BLOCK)
    other = [t + 500 for t in SYSTEM]
    for index, system in enumerate((SYSTEM, other, SYSTEM)):
        row = begun(scheduler, index, [*system, 1, 2], shared=len(system))
        scheduler.admit()
        assert feed(scheduler) == [([index], [], [], [(0, 0)])]
        scheduler.ended(row)


def test_a_cache_that_is_gone_is_not_copied_from():
    scheduler = Scheduler(1, share=BLOCK)
    first = begun(scheduler, 0, SYSTEM + FIRST)
    scheduler.admit()
    feed(scheduler)
    write(first, 5)
    begun(scheduler, 1, SYSTEM + FIRST)
    scheduler.admit()  # drops the first one's cache
    (part,) = scheduler.rounds()
    assert part.from_slots == [] and part.rows[0].fed == 0


# ---- a long random play ---------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(8))
def test_caches_hold_what_the_rows_say(seed):
    """A simulated cache per slot and place: whatever happens, a row's fed tokens are in its own."""
    rng = random.Random(seed)
    slots, parked, prefixes = rng.randint(1, 5), rng.randint(0, 3), rng.randint(0, 2)
    share = rng.choice((0, BLOCK, 2 * BLOCK))
    scheduler = Scheduler(slots, parked, prefixes, share)
    cache = [[] for _ in range(slots)]
    store = [[] for _ in range(parked + prefixes)]
    rows, begun_count, ended = {}, 0, 0
    while ended < 40:
        for _ in range(scheduler.free_slots()):
            if begun_count < 40:
                rows[begun_count] = Row(begun_count, 0, shared=rng.choice((0, len(SYSTEM))))
                scheduler.begin(rows[begun_count])
                begun_count += 1
        for index, row in list(rows.items()):
            if row.asking and rng.random() < 0.5:
                if row.tokens and rng.random() < 0.3:
                    scheduler.ended(row)
                    del rows[index]
                    ended += 1
                elif row.tokens and rng.random() < 0.3:
                    keep = len(row.tokens) - rng.randint(0, row.written)
                    scheduler.answered(row, [rng.randrange(9)] * rng.randint(1, 20), keep)
                elif row.tokens:
                    scheduler.answered(row, [rng.randrange(9)] * rng.randint(1, 20))
                else:
                    task = rng.choice((FIRST, SECOND))
                    scheduler.answered(row, SYSTEM + task + [rng.randrange(9)])
        moves = scheduler.admit()
        for slot, place in moves.park:
            store[place] = list(cache[slot])
        for place, slot in moves.unpark:
            cache[slot] = list(store[place])
        for part in scheduler.rounds():
            for a, b in part.from_slots:
                cache[b] = list(cache[a])
            for a, b in part.from_store:
                cache[b] = list(store[a])
            for row in part.rows:
                cache[row.slot][row.fed :] = row.tokens[row.fed : -1]
                row.fed = len(row.tokens) - 1
            for slot, place in part.keep:
                store[place] = list(cache[slot])
        for row in scheduler.writing:
            assert cache[row.slot][: row.fed] == row.tokens[: row.fed]
            assert row.pending == 0
            n = rng.randint(1, 3)
            new = [rng.randrange(9) for _ in range(n)]
            cache[row.slot][row.fed :] = [row.tokens[-1], *new[:-1]]
            write(row, *new, ends=rng.random() < 0.6)
        assert len({row.slot for row in scheduler.in_slots}) == len(scheduler.in_slots)
    assert not scheduler.going
