"""Agreement of judges against values by hand."""

import math

import numpy as np
import pytest

from tarl_jax.judge.agreement import agreement, by_length, by_position, cohens_kappa, consistency


def test_kappa_by_hand():
    # Cohen's example in many textbooks: 20 and 15 agreements of 50, 5 and 10 disagreements.
    assert cohens_kappa(np.array([[20, 5], [10, 15]])) == pytest.approx(0.4)
    # p_o = 0.6; p_e = (3*3 + 3*4 + 4*3) / 100 = 0.33.
    assert cohens_kappa(np.array([[2, 1, 0], [0, 2, 1], [1, 1, 2]])) == pytest.approx(0.27 / 0.67)


@pytest.mark.parametrize(("table", "kappa"), [
    (np.diag([3, 4, 5]), 1.0),
    (np.outer([1, 2, 3], [2, 1, 1]), 0.0),  # independent
    (np.array([[0, 5], [5, 0]]), -1.0),
])
def test_kappa_at_its_ends(table, kappa):
    assert cohens_kappa(table) == pytest.approx(kappa)


@pytest.mark.parametrize("table", [np.zeros((3, 3), int), np.diag([0, 0, 7])])
def test_kappa_that_means_nothing(table):
    assert math.isnan(cohens_kappa(table))


FIRST = [[1, 0, -1], [1], None, [1, 1]]
SECOND = [[1, 1, -1], [0], [1], None]


def test_the_table_by_hand():
    found = agreement(FIRST, SECOND)
    assert found.table.tolist() == [[1, 0, 0], [0, 0, 1], [0, 1, 1]]
    assert (found.turns, found.share) == (4, 0.5)


def test_turns_are_told_apart_by_place_and_by_length():
    places, lengths = by_position(FIRST, SECOND), by_length(FIRST, SECOND)
    assert list(places) == ["1", "2-3", "4-7", "8-15", "16+"] == list(lengths)
    assert [places[name].turns for name in ("1", "2-3", "4-7")] == [2, 2, 0]
    assert [lengths[name].turns for name in ("1", "2-3", "4-7")] == [1, 3, 0]
    assert places["1"].table.tolist() == [[0, 0, 0], [0, 0, 0], [0, 1, 1]]
    long = [[1] * 40]
    assert [p.turns for p in by_position(long, long).values()] == [1, 2, 4, 8, 25]


def test_another_length_is_refused():
    with pytest.raises(ValueError):
        agreement([[1, 0]], [[1]])


def test_consistency_counts_each_pair_both_ways():
    found = consistency([[[1, 0]], [[1, 1]], [[1, 0]]])
    assert found.table.tolist() == [[0, 0, 0], [0, 2, 2], [0, 2, 6]]
    # p_o = 8/12; margins 4/12 and 8/12 on both sides: p_e = (16 + 64) / 144.
    assert found.kappa == pytest.approx((8 / 12 - 80 / 144) / (1 - 80 / 144))
