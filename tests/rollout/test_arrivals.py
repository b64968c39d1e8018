"""Whether a burst waits for those who are about to come."""

from tarl_jax.rollout.arrivals import Arrivals


def settled(seconds):
    """Of clients that come back after so long."""
    arrivals = Arrivals()
    for number in range(100):
        arrivals.left(number, float(number))
        arrivals.came(number, float(number), number + seconds)
    return arrivals


def test_the_next_one_is_waited_for_where_that_costs_less_than_it_saves():
    arrivals = settled(0.02)
    assert abs(arrivals.seconds - 0.02) < 1e-3
    for number in range(10):
        arrivals.left(number, 200.0)
    gap = arrivals.seconds / 10
    assert arrivals.patience(4, 5 * gap, 200.0) == 2 * gap
    assert arrivals.patience(6, 5 * gap, 200.0) == 0
    for number in range(9):
        arrivals.came(number, 200.0, 200.01)
    assert arrivals.patience(4, 5 * gap, 200.01) == 0  # one alone is ten times as long in coming


def test_all_are_waited_for_who_are_back_in_a_small_part_of_a_burst():
    arrivals = settled(0.02)
    arrivals.left(1, 199.99)
    arrivals.left(0, 200.0)
    assert arrivals.patience(60, 0.12, 200.0) == 0.06
    assert abs(arrivals.patience(60, 1.0, 200.0) - 0.08) < 1e-3  # by then it has gone
    arrivals.came(1, 199.99, 200.01)
    arrivals.came(0, 200.0, 200.02)
    assert arrivals.patience(60, 0.2, 200.02) == 0


def test_nobody_is_waited_for_who_was_not_answered_or_is_long_away():
    arrivals = settled(0.02)
    assert arrivals.patience(1, 10.0, 200.0) == 0
    arrivals.left(1, 200.0)
    assert arrivals.patience(1, 0.05, 200.05) > 0
    assert arrivals.patience(1, 0.05, 201.0) == 0


def test_slow_clients_are_learned_of_and_one_slow_one_is_not():
    arrivals = settled(0.005)
    arrivals.came(0, 0.0, 3600.0)
    assert arrivals.seconds < 0.01
    assert 0.9 < settled(60.0).seconds <= 1.0
