"""Rates and bits against values worked by hand and against NumPy."""

import math

import numpy as np
import pytest

from tarl_jax.judge.information import Rate, Remark, bits, mutual_information, plain, rates


def remarks(*counts):
    """(grade, note, right, how many) -> remarks, of ten tasks in turn."""
    grades = {"right": (1, False), "neutral": (0, False), "minor": (0, True), "major": (-1, False)}
    found = []
    for grade, note, right, many in counts:
        score, minor = grades[grade]
        found += [Remark(f"t{i % 10}", right, score, minor, note) for i in range(many)]
    return found


def test_numbers_and_ids_are_no_part_of_a_note():
    assert plain("reads #W1234, twice (noise: was +1)") == "reads twice (noise: was"
    assert plain("refuses what the policy allows") == "refuses what the policy allows"


def test_the_four_grades_are_told_apart():
    assert [r.grade for r in remarks(*[(g, "", True, 1) for g in (
        "right", "neutral", "minor", "major")])] == ["right", "neutral", "minor", "major"]


def test_rates_by_hand():
    said = remarks(("minor", "again", False, 3), ("minor", "again", True, 1),
                   ("minor", "malformed", False, 2), ("right", "reports", True, 5))
    assert rates(said) == [
        Rate("right", "", 5, 5), Rate("right", "reports", 5, 5),
        Rate("minor", "", 6, 1), Rate("minor", "again", 4, 1), Rate("minor", "malformed", 2, 0),
    ]
    assert rates([]) == []


def test_mutual_information_by_hand():
    # All is told: H = 1 bit; cells 2 + 2 - 2, so (1 + 1 - 1) / (2 n) nats of correction.
    sure = np.array([[50, 0], [0, 50]])
    assert mutual_information(sure) == pytest.approx(1 + 1 / 200 / math.log(2))
    # Nothing is told: what the plug-in estimate would give for nothing is taken away.
    even = np.array([[25, 25], [25, 25]])
    assert mutual_information(even) == pytest.approx(-1 / 200 / math.log(2))


def test_the_correction_takes_the_bias_away():
    rng = np.random.default_rng(0)
    values = []
    for _ in range(2000):
        labels, outcomes = rng.integers(0, 20, 300), rng.integers(0, 2, 300)
        table = np.zeros((20, 2), int)
        np.add.at(table, (labels, outcomes), 1)
        values.append(mutual_information(table))
    # (20 - 1) / 600 nats are 0.046 bits without it.
    assert abs(np.mean(values)) < 0.004


def test_a_judge_that_tells_more_has_more_bits():
    said = remarks(("right", "reads", True, 50), ("right", "reads", False, 50),
                   ("right", "writes", True, 100), ("major", "wrong", False, 100))
    by_grade, by_note = (bits(said, of) for of in (lambda r: r.grade, lambda r: r.note))
    # Of 300 turns 150 end right; "right" is told on 200, of which 150.
    entropy = -(0.75 * math.log2(0.75) + 0.25 * math.log2(0.25))
    assert by_grade.value == pytest.approx(1 - 2 / 3 * entropy, abs=0.01)
    assert by_note.value == pytest.approx(1 - 1 / 3, abs=0.01)
    assert 0 <= by_grade.error < 0.01  # the tasks are alike


def test_the_error_is_that_of_drawing_tasks():
    """Tasks whose turns stand or fall together weigh as one: ten turns each, no more than one."""
    rng = np.random.default_rng(1)
    one = [Remark(f"t{i}", bool(right), 1 if right != flip else 0, False, "")
           for i, (right, flip) in enumerate(rng.random((200, 2)) < (0.5, 0.2))]
    ten = [r for r in one for _ in range(10)]
    single, tenfold = (bits(said, lambda r: r.grade) for said in (one, ten))
    assert tenfold.error == pytest.approx(single.error, rel=0.1)
    # Of a channel that errs on a share q: sqrt(q (1 - q) / n) log2((1 - q) / q).
    assert single.error == pytest.approx(math.sqrt(0.2 * 0.8 / 200) * 2, rel=0.2)


def test_nothing_said_is_nothing_known():
    empty, alone = bits([], lambda r: r.grade), bits(
        [Remark("t", True, 1, False, "")], lambda r: r.grade)
    assert math.isnan(empty.value) and math.isnan(empty.error)
    assert alone.value == 0 and math.isnan(alone.error)
