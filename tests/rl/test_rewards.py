"""The reward against values worked by hand, and the order of the four kinds of episodes."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tarl_jax.config import RewardConfig
from tarl_jax.rl.rewards import trajectory_reward, turn_rewards

DEFAULT = RewardConfig()
TURNS = range(1, 31)


def total(success, scores, expert_turns=5, **fields):
    return trajectory_reward(success, scores, expert_turns, RewardConfig(**fields)).total


@pytest.mark.parametrize("success, scores, expected", [
    (True, [1, 1, 1, 1], 10 + 5),
    (True, [1, 1, 0, 1], 10 + 5 * 3 / 4),
    (True, [0, 0, 0], 10),
    (False, [1, 0, 0, 0], 5 / 4),
    (True, [1, -1, 1, 0], 10 + 5 * 2 / 4 - 5),
    (False, [1, -1, 1, 0], 5 * 2 / 4 - 5),
    (False, [-1], -5),
    (False, [], 0),
])
def test_published_formula(success, scores, expected):
    # 10 R + 5 (sum of the turns that are not -1) / (turns taken) - 5 [any -1]
    assert total(success, scores, denominator="taken") == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("success, scores, expected", [
    (True, [1, 1, 1, 1, 1], 10 + 5),
    (True, [1, 1, 0, 1, 0, 0, 1], 10 + 5 * 4 / 5),
    (True, [0, 0, 0], 10),
    (False, [1], 5 / 5),
    (True, [1, -1, 1, 0], 10 + 5 * 2 / 5 - 5),
    (False, [1, -1, 1, 0], 5 * 2 / 5 - 5),
    (False, [], 0),
])
def test_default_formula(success, scores, expected):
    # As published, but T is what the task needs (here 5 turns), however many were taken.
    assert total(success, scores) == pytest.approx(expected, abs=1e-12)


def test_parts_are_named_and_add_up():
    reward = trajectory_reward(True, [1, -1, 0, 0], 4, DEFAULT)
    assert (reward.terminal, reward.turns, reward.major) == (10, 1.25, -5)
    assert reward.total == 6.25


def test_every_constant_is_used():
    got = total(True, [1, 1, -1, 0], terminal_scale=7, turn_scale=2, major_scale=3, turn_cap=9)
    assert got == pytest.approx(7 + 2 * 2 / 5 - 3)


def test_with_weight_one_over_turns_taken_the_cap_never_binds():
    for n in TURNS:
        assert total(False, [1] * n, denominator="taken") == pytest.approx(5)
        assert total(False, [1] * n, denominator="taken", turn_scale=1.0) == pytest.approx(1)


def test_cap_binds_where_the_scale_exceeds_it():
    assert total(False, [1, 1, 1, 0], 4, turn_scale=8, turn_cap=5) == 5  # 6 without the cap
    assert total(False, [1, 0, 0, 0], 4, turn_scale=8, turn_cap=5) == 2
    # The cap is on the turns alone, not on the penalty or the verdict.
    assert total(True, [1, 1, 1, -1], 4, turn_scale=8, turn_cap=5) == 10 + 5 - 5


@pytest.mark.parametrize("max_majors, expected", [(0, 0), (1, -5), (2, -10), (9, -15)])
def test_max_majors(max_majors, expected):
    scores = [-1, -1, -1]
    assert total(False, scores, max_majors=max_majors) == expected


def test_majors_that_cost_nothing_count_as_zero():
    assert total(False, [1, -1, -1, -1], 4) == 5 * 1 / 4 - 5


def test_before_major_only_drops_what_follows_the_first_major():
    scores = [1, 0, -1, 1, 1, -1, 1, 0]
    assert total(False, scores, 8) == pytest.approx(5 * 4 / 8 - 5)
    assert total(False, scores, 8, before_major_only=True) == pytest.approx(5 * 1 / 8 - 5)
    assert total(False, [1, 1], 2, before_major_only=True) == 5


def test_denominators():
    scores = [1, 1, 0, 1]
    assert total(False, scores, expert_turns=8, denominator="taken") == pytest.approx(5 * 3 / 4)
    assert total(False, scores, expert_turns=8, denominator="expert") == pytest.approx(5 * 3 / 8)
    assert DEFAULT.denominator == "expert"
    # More right turns than the expert needs earn no more than the cap.
    assert total(False, [1] * 9, expert_turns=3) == 5


@settings(max_examples=100, deadline=None)
@given(st.booleans(), st.lists(st.sampled_from([-1, 0, 1]), max_size=12),
       st.lists(st.sampled_from([0, 1]), max_size=12), st.integers(1, 30), st.booleans())
def test_ending_early_never_raises_the_reward(success, scores, rest, expert_turns, before):
    # What is left out are turns that did no harm; in a failed episode they must not dilute the
    # right ones, or else the best way to fail is to stop at the first right turn.
    fields = {"before_major_only": before}
    early = total(success, scores, expert_turns, **fields)
    assert early <= total(success, scores + rest, expert_turns, **fields)


def test_ending_early_pays_where_the_turns_taken_divide():
    # Why "taken" is not the default.
    assert total(False, [1], denominator="taken") > total(False, [1, 0], denominator="taken")


def test_a_further_major_costs_no_more_than_it_is_told_to():
    # Ending after the first -1 is no way to save the second.
    assert total(False, [1, -1]) == total(False, [1, -1, -1])
    assert total(False, [1, -1]) > total(False, [1, -1, -1], max_majors=2)


@pytest.mark.parametrize("success, expected", [(True, 10), (False, 0)])
def test_an_abstaining_judge_leaves_the_terminal_reward(success, expected):
    reward = trajectory_reward(success, None, 5, DEFAULT)
    assert (reward.terminal, reward.turns, reward.major) == (expected, 0, 0)


def test_abstaining_is_not_a_major_and_not_zero_turns():
    assert total(True, None) == 10
    assert total(True, [-1]) < total(True, None) < total(True, [1])


def test_terminal_placement_ignores_the_scores():
    for scores in ([1, 1], [-1, -1], [0], None):
        assert total(True, scores, placement="terminal") == 10
        assert total(False, scores, placement="terminal") == 0


@pytest.mark.parametrize("fields", [{}, {"before_major_only": True}, {"denominator": "taken"}])
def test_without_majors_the_order_of_turns_does_not_matter(fields):
    values = {round(total(True, p, 7, **fields), 12)
              for p in itertools.permutations([1, 0, 1, 1, 0])}
    assert len(values) == 1


@pytest.mark.parametrize("scores", [[2], [1, -2], [0.5], [math.nan], [1, 1, 3]])
def test_an_impossible_score_is_an_error(scores):
    with pytest.raises(ValueError, match=r"each must be -1, 0 or \+1"):
        total(True, scores)


def extremes(success, major, turns, expert_turns, config):
    """(least, most) reward of an episode of that kind with that many turns."""
    rest = turns - major
    cases = ([-1] * major + [0] * rest, [-1] * major + [1] * rest, [-1] * turns if major else [],
             [-1] * major + [1] * (rest // 2) + [0] * (rest - rest // 2))
    values = [trajectory_reward(success, scores, expert_turns, config, minors=minors).total
              for scores in cases if scores
              for minors in (None, [score == 0 for score in scores])]
    return min(values), max(values)


def classes(config, expert_turns):
    """(least, most) of clean success, flawed success, clean failure, failure with a major."""
    kinds = ((True, 0), (True, 1), (False, 0), (False, 1))
    out = []
    for success, major in kinds:
        ends = [extremes(success, major, n, expert_turns, config) for n in TURNS]
        out.append((min(low for low, _ in ends), max(high for _, high in ends)))
    return out


@pytest.mark.parametrize("expert_turns", [1, 5, 29, 30])
def test_the_four_classes_are_ordered_by_default(expert_turns):
    clean, flawed, failed, harmful = classes(DEFAULT, expert_turns)
    # At worst, each class ends where the next one begins: the first tie is a success whose turns
    # are all minor, and one with a major whose other turns are as many right ones as can pay.
    assert clean[0] == DEFAULT.terminal_scale >= flawed[1]
    assert flawed[0] == failed[1] == 5
    assert failed[0] == 0 >= harmful[1]
    # In 30 turns, 29 can be right beside the major one: too few for a task that needs 30.
    assert (clean[0] > flawed[1]) == (failed[0] > harmful[1]) == (expert_turns == 30)


@pytest.mark.parametrize("minor_scale", [1, 2.5, DEFAULT.turn_scale])
@pytest.mark.parametrize("expert_turns", [1, 5, 29, 30])
def test_minor_turns_change_no_class(expert_turns, minor_scale):
    config = RewardConfig(minor_scale=minor_scale)
    np.testing.assert_allclose(
        classes(config, expert_turns), classes(DEFAULT, expert_turns), atol=1e-12
    )


@pytest.mark.parametrize("expert_turns", [1, 5, 30])
def test_success_beats_failure_strictly_where_the_majors_are_the_same(expert_turns):
    clean, flawed, failed, harmful = classes(DEFAULT, expert_turns)
    assert clean[0] > failed[1]
    assert flawed[0] > harmful[1]
    assert clean[0] > harmful[1]


@settings(max_examples=100, deadline=None)
@given(st.booleans(), st.lists(st.sampled_from([0, 1]), max_size=12), st.integers(1, 30))
def test_the_same_turns_with_a_major_among_them_are_strictly_worse(success, scores, expert_turns):
    clean = total(success, scores, expert_turns)
    for position in range(len(scores)):
        flawed = [*scores[:position], -1, *scores[position + 1:]]
        assert total(success, flawed, expert_turns) <= clean - DEFAULT.major_scale


def test_the_four_classes_are_ordered_with_the_turns_taken():
    clean, flawed, failed, harmful = classes(RewardConfig(denominator="taken"), 5)
    assert clean[0] > flawed[1]
    # A tie at 5 is possible: a success whose every other turn is minor, and a failure whose every
    # turn is right.
    assert flawed[0] == failed[1] == 5
    assert failed[0] > harmful[1]


@pytest.mark.parametrize("major_scale", [3, 5, 7])
def test_with_any_number_of_turns_a_major_always_costs(major_scale):
    for n in TURNS:
        rest = [1] * (n - 1)
        for success in (True, False):
            with_major = total(success, [*rest, -1], major_scale=major_scale)
            assert with_major <= total(success, [*rest, 0], major_scale=major_scale) - major_scale


# ---- each turn's part -----------------------------------------------------------------------


def per_turn(success, scores, expert_turns=5, turns=None, worth=None, **fields):
    config = RewardConfig(**{"placement": "turn_end", **fields})
    turns = len(scores) if turns is None else turns
    return turn_rewards(success, scores, turns, expert_turns, config, worth).tolist()


def test_turn_rewards_by_hand():
    assert per_turn(True, [1, 0, -1, 1], 5) == [1, 0, -5, 1 + 10]
    assert per_turn(False, [1, -1, -1, 0], 5) == [1, -5, 0, 0]
    assert per_turn(False, [1, -1, -1, 1], 5, max_majors=2) == [1, -5, -5, 1]
    assert per_turn(False, [1, -1, 1], 5, before_major_only=True) == [1, -5, 0]
    assert per_turn(True, [1, 1], denominator="taken") == [2.5, 12.5]
    assert per_turn(True, [0, 1], placement="terminal") == [0, 10]


def test_the_running_sum_of_turns_is_capped():
    assert per_turn(False, [1, 1, 1, 1], 2, turn_scale=4, turn_cap=5) == [2, 2, 1, 0]
    # A turn that takes away makes room again.
    got = per_turn(False, [1, 1, 1], 1, turn_scale=4, turn_cap=5, worth=[1, 1, -1])
    assert got == pytest.approx([4, 1, -1])


def test_an_abstaining_judge_leaves_the_verdict_on_the_last_turn():
    assert per_turn(True, None, turns=3) == [0, 0, 10]
    assert per_turn(False, None, turns=3) == [0, 0, 0]
    assert per_turn(True, [], turns=0) == []


def test_an_abstaining_judge_finds_nothing_minor():
    assert per_turn(True, None, turns=2, minor_scale=5) == [0, 10]
    assert total(True, None, minor_scale=5) == 10


# ---- minor turns ----------------------------------------------------------------------------


def both(success, scores, minors, expert_turns=5, worth=None, **fields):
    """(each turn's part, the part of all turns), by two functions that must agree."""
    parts = turn_rewards(success, scores, len(scores), expert_turns,
                         RewardConfig(placement="turn_end", **fields), worth, minors)
    whole = trajectory_reward(success, scores, expert_turns, RewardConfig(**fields), worth, minors)
    assert parts.sum() == pytest.approx(whole.total)
    return parts.tolist(), whole.turns


def test_a_minor_turn_costs_its_share_on_its_own_turn():
    # 5 / 5 for each right turn, 2 / 5 for each minor one.
    parts, turns = both(True, [0, 1, 0, 1, 0], [True, False, False, False, True], minor_scale=2)
    assert parts == pytest.approx([-0.4, 1, 0, 1, -0.4 + 10]) and turns == pytest.approx(1.2)
    parts, turns = both(True, [0, 1], [True, False], minor_scale=2, denominator="taken")
    assert parts == pytest.approx([-1, 2.5 + 10]) and turns == pytest.approx(1.5)
    parts, turns = both(False, [1, 0, -1], [False, True, False], minor_scale=2)
    assert parts == pytest.approx([1, -0.4, -5]) and turns == pytest.approx(0.6)


def test_by_default_a_minor_turn_is_worth_as_much_as_a_neutral_one():
    assert both(True, [1, 0, 0], [False, True, True]) == both(True, [1, 0, 0], [False] * 3)


def test_minor_turns_take_no_more_than_right_ones_brought():
    # One right turn brings 1; three minor ones would take 3, and take a third of 1 each.
    parts, turns = both(False, [0, 1, 0, 0], [True, False, True, True], minor_scale=5)
    assert parts == pytest.approx([-1 / 3, 1, -1 / 3, -1 / 3]) and turns == pytest.approx(0)
    assert both(False, [0, 0], [True, True], minor_scale=5) == ([0, 0], 0)
    assert both(False, [0, -1], [True, False], minor_scale=5) == ([0, -5], 0)


def test_minor_turns_are_taken_off_before_the_cap():
    # 3 right turns at 5 each are 15, less 5: still above the cap.
    parts, turns = both(False, [1, 1, 1, 0], [False] * 3 + [True], 1, minor_scale=5)
    assert parts == [5, 0, 0, 0] and turns == 5
    parts, turns = both(False, [1, 0], [False, True], 1, minor_scale=2)
    assert parts == [5, -2] and turns == 3


def test_minor_turns_behind_the_first_major_are_left_out_with_the_right_ones():
    fields = {"minor_scale": 2, "before_major_only": True}
    parts, turns = both(False, [1, 0, -1, 0, 1], [False, True, False, True, False], **fields)
    assert parts == pytest.approx([1, -0.4, -5, 0, 0]) and turns == pytest.approx(0.6)


def test_minor_turns_do_not_deepen_what_calibration_made_negative():
    parts, turns = both(False, [1, 0], [False, True], worth=[-0.5, 0.0], minor_scale=5)
    assert parts == [-0.5, 0] and turns == -0.5
    parts, turns = both(False, [1, 0], [False, True], worth=[0.5, 0.2], minor_scale=5)
    assert parts == pytest.approx([0.5, 0.2 - 0.7]) and turns == pytest.approx(0)


@pytest.mark.parametrize("minors", [[True, False], [False, True, False], [False]])
def test_only_a_zero_is_minor(minors):
    with pytest.raises(ValueError, match="only a 0 is minor"):
        trajectory_reward(True, [1, 0], 5, DEFAULT, minors=minors)


SCORES = st.lists(st.sampled_from([-1, 0, 1]), min_size=1, max_size=12)
CONFIGS = st.builds(
    RewardConfig, placement=st.just("turn_end"), denominator=st.sampled_from(["taken", "expert"]),
    max_majors=st.integers(0, 4), turn_scale=st.floats(0, 20), turn_cap=st.floats(0, 8),
    before_major_only=st.booleans(), minor_scale=st.floats(0, 20),
)


@settings(max_examples=200, deadline=None)
@given(st.booleans(), SCORES, st.integers(1, 12), CONFIGS, st.booleans(), st.integers(0, 99))
def test_turn_rewards_add_up_to_the_trajectorys(success, scores, expert, config, table, seed):
    worth = np.random.default_rng(seed).uniform(0, 1, len(scores)) if table else None
    drawn = np.random.default_rng([seed, 1]).random(len(scores)) < 0.5
    minors = [score == 0 and bool(minor) for score, minor in zip(scores, drawn, strict=True)]
    parts = turn_rewards(success, scores, len(scores), expert, config, worth, minors)
    whole = trajectory_reward(success, scores, expert, config, worth, minors)
    assert whole.turns >= -1e-9 and whole.turns <= trajectory_reward(
        success, scores, expert, config, worth).turns + 1e-9
    assert parts.sum() == pytest.approx(whole.total, abs=1e-9)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from([0, 1]), min_size=1, max_size=9), st.randoms(), CONFIGS)
def test_turns_without_a_major_may_change_places(scores, random, config):
    shuffled = random.sample(scores, len(scores))
    one, other = (trajectory_reward(True, s, 4, config).total for s in (scores, shuffled))
    assert one == pytest.approx(other, abs=1e-9)


# ---- calibrated turns -----------------------------------------------------------------------


def test_calibrated_turns_take_the_place_of_the_scores():
    reward = trajectory_reward(True, [1, 0, -1], 5, DEFAULT, [0.5, -0.2, 1.0])
    assert reward.turns == pytest.approx(5 * 0.3 / 5)  # the major turn earns nothing
    assert reward.major == -5
    low = trajectory_reward(False, [1, 1], 1, DEFAULT, [-1.0, -1.0])
    assert low.turns == -5  # the cap holds on both sides
    assert trajectory_reward(False, [1, 0], 2, DEFAULT, [1.0, 0.0]).total == total(False, [1, 0], 2)
