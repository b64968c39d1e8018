"""Rates on a clock that the test sets, and budgets, by hand."""

import numpy as np
import pytest

from tarl_jax.llm.errors import BudgetSpent, LLMError
from tarl_jax.llm.ledger import Ledger
from tarl_jax.llm.limits import WINDOW, Budget, RateLimit


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


def starts(limit, *tokens):
    return [limit.book(n)[0] - 1000 for n in tokens]


def test_without_limits_all_begin_now():
    assert starts(RateLimit(0, 0, Clock()), 10**9, 10**9) == [0, 0]


def test_requests_per_minute():
    assert starts(RateLimit(2, 0, Clock()), 1, 1, 1, 1, 1) == [0, 0, 60, 60, 120]


def test_tokens_per_minute():
    assert starts(RateLimit(0, 100, Clock()), 60, 40, 1, 99, 100) == [0, 0, 60, 60, 120]


def test_what_is_larger_than_the_limit_goes_alone():
    assert starts(RateLimit(0, 100, Clock()), 500, 1, 500) == [0, 60, 120]


def test_the_window_slides():
    clock = Clock()
    limit = RateLimit(2, 0, clock)
    limit.book(1)
    clock.now += 30
    limit.book(1)
    clock.now += 10
    assert limit.book(1)[0] == 1060 and limit.book(1)[0] == 1090


def test_what_was_really_used_makes_room():
    limit = RateLimit(0, 100, Clock())
    place = limit.book(100)
    limit.settle(place, 20)
    assert limit.book(80)[0] == 1000 and limit.book(1)[0] == 1060


def test_a_place_after_the_deadline_is_not_taken():
    limit = RateLimit(1, 0, Clock())
    limit.book(1)
    with pytest.raises(LLMError, match=r"60\.0 s") as caught:
        limit.book(1, deadline=1059.0)
    assert caught.value.kind == "deadline"
    assert limit.book(1, deadline=1060.0)[0] == 1060


def test_no_window_of_any_run_holds_too_much():
    rng = np.random.default_rng(0)
    clock = Clock()
    limit = RateLimit(5, 300, clock)
    placed = []
    for _ in range(300):
        clock.now += rng.exponential(5)
        size = int(rng.integers(1, 200))
        placed.append((limit.book(size)[0], size))
    times, sizes = map(np.array, zip(*placed, strict=True))
    assert (np.diff(times) >= 0).all()
    for end in times:
        inside = (times > end - WINDOW + 1e-6) & (times <= end)
        assert inside.sum() <= 5 and sizes[inside].sum() <= 300


def test_what_is_under_way_counts_with_its_estimate():
    budget = Budget(0, 1.0, "user.llm")
    budget.reserve(0.6)
    with pytest.raises(BudgetSpent, match=r"config.user.llm.max_usd = 1.0"):
        budget.reserve(0.6)
    budget.settle(0.6, 0.1)
    budget.reserve(0.6)
    with pytest.raises(BudgetSpent, match=r"0\.7000 are spent and the next may cost 0\.4"):
        budget.reserve(0.4)


def test_a_ledger_tells_what_is_new():
    ledger = Ledger()
    ledger.add(calls=2, usd=0.5)
    assert ledger.take()["calls"] == 2
    ledger.add(calls=1)
    assert ledger.take() == dict.fromkeys(ledger.snapshot(), 0) | {"calls": 1}
    assert ledger.snapshot()["calls"] == 3 and ledger.snapshot()["usd"] == 0.5
    with pytest.raises(KeyError):
        ledger.add(cals=1)
