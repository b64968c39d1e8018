"""Advantages of parts of episodes, by hand; and by enumeration that baselines cost no bias."""

import itertools

import numpy as np
import pytest

from tarl_jax.rl.turn_advantages import by_state, decoupled, leave_one_out_by_key, returns_to_go


def test_stages_are_held_against_the_others_that_reached_them():
    groups = [[[(0, 10.0), (1, 4.0)], [(0, 0.0)], [(0, 5.0), (1, 8.0)]], [[(0, 1.0)], [(0, 2.0)]]]
    got = leave_one_out_by_key(groups)
    assert got[0] == [[10 - 2.5, 4 - 8.0], [0 - 7.5], [5 - 5.0, 8 - 4.0]]
    assert got[1] == [[1 - 2.0], [2 - 1.0]]


def test_who_comes_further_than_all_others_is_held_against_other_groups():
    groups = [[[(0, 1.0), (1, 9.0)], [(0, 3.0)]], [[(0, 2.0)], [(0, 6.0)]]]
    got = leave_one_out_by_key(groups)
    assert got[0][0] == [1 - 3.0, 9 - 4.0]  # (2 + 6) / 2
    assert leave_one_out_by_key(groups[:1])[0][0][1] == 9.0  # nobody to be held against
    assert leave_one_out_by_key([[[], [(0, 1.0)]]]) == [[[], [1.0]]]


def test_a_part_that_an_episode_meets_twice_is_held_against_others_alone():
    got = leave_one_out_by_key([[[("a", 1.0), ("a", 3.0)], [("a", 2.0)]]])
    assert got == [[[1 - 2.0, 3 - 2.0], [2 - 2.0]]]


def test_turns_in_one_state_are_compared_and_single_ones_are_not():
    group = [[("x", 4.0), ("y", 1.0)], [("x", 0.0), ("x", 2.0)]]
    assert by_state(group, divide=False) == [[2.0, 0.0], [-2.0, 0.0]]
    spread = np.std([4.0, 0.0, 2.0])
    np.testing.assert_allclose(by_state(group, divide=True)[0], [2 / spread, 0])


def test_returns_to_go_by_hand():
    np.testing.assert_allclose(returns_to_go(np.array([1.0, 0.0, 8.0]), 0.5), [1 + 2, 4, 8])
    assert returns_to_go(np.zeros(0), 0.5).size == 0


def test_each_reward_has_a_spread_of_its_own():
    parts = np.array([[10.0, 0.1], [0.0, 0.3], [0.0, 0.2], [99.0, 99.0]])
    valid = np.array([True, True, True, False])
    got = decoupled(parts, valid)
    first = (parts[:3, 0] - 10 / 3) / parts[:3, 0].std()
    second = (parts[:3, 1] - 0.2) / parts[:3, 1].std()
    np.testing.assert_allclose(got, [*(first + second), 0])
    assert decoupled(np.array([[1.0, 2.0], [3.0, 2.0]]), np.ones(2, bool)).tolist() == [-1, 1]
    assert not decoupled(parts, np.zeros(4, bool)).any()


# ---- no bias, by enumeration ----------------------------------------------------------------
# A process of two stages. In each the policy takes action 1 with probability sigmoid(theta_j),
# which is then right with probability RIGHT[j][action]. The second stage is reached with
# probability ON[action of the first].

RIGHT, ON = np.array([[0.2, 0.7], [0.5, 0.1]]), np.array([0.3, 0.9])
THETA = np.array([0.4, -0.6])


def outcomes():
    """Every episode: (its probability, [(stage, action, right)])."""
    p = 1 / (1 + np.exp(-THETA))
    for a, r in itertools.product((0, 1), (0, 1)):
        first = (p[0] if a else 1 - p[0]) * (RIGHT[0, a] if r else 1 - RIGHT[0, a])
        yield first * (1 - ON[a]), [(0, a, r)]
        for b, s in itertools.product((0, 1), (0, 1)):
            second = (p[1] if b else 1 - p[1]) * (RIGHT[1, b] if s else 1 - RIGHT[1, b])
            yield first * ON[a] * second, [(0, a, r), (1, b, s)]


def score(action, stage):
    """d log pi / d theta_stage."""
    return action - 1 / (1 + np.exp(-THETA[stage]))


def expected_gradient(advantages_of):
    """Of a group of three, over all groups; [2], summed over the group's episodes."""
    found = np.zeros(2)
    for group in itertools.product(list(outcomes()), repeat=3):
        weight = np.prod([p for p, _ in group])
        episodes = [e for _, e in group]
        for episode, advantages in zip(episodes, advantages_of(episodes), strict=True):
            for (stage, action, _), a in zip(episode, advantages, strict=True):
                found[stage] += weight * a * score(action, stage)
    return found


def by_stage(episodes):
    items = [[(stage, 10.0 * right) for stage, _, right in e] for e in episodes]
    return leave_one_out_by_key([items])[0]


def test_the_leave_one_out_baseline_costs_no_bias():
    """The gradient of what each stage earns by its own tokens, given that it is reached."""
    plain = expected_gradient(lambda es: [[10.0 * r for _, _, r in e] for e in es])
    np.testing.assert_allclose(expected_gradient(by_stage), plain, rtol=1e-10)
    p = 1 / (1 + np.exp(-THETA))
    reached = np.array([1.0, p[0] * ON[1] + (1 - p[0]) * ON[0]])
    slope = 10.0 * (RIGHT[:, 1] - RIGHT[:, 0]) * p * (1 - p)
    np.testing.assert_allclose(plain, 3 * reached * slope, rtol=1e-10)


@pytest.mark.parametrize("baseline", ["own", "outcome"])
def test_a_baseline_of_the_parts_own_choice_would(baseline):
    """With the episode's own part in the mean, or only others that did as well, it is biased."""
    def advantages(episodes):
        found = []
        for e in episodes:
            mine = []
            for stage, _, right in e:
                rest = [r for other in episodes for s, _, r in other if s == stage and (
                    baseline == "own" or (other is not e and r == right))]
                mine.append(10.0 * right - 10.0 * (np.mean(rest) if rest else 0.0))
            found.append(mine)
        return found

    plain = expected_gradient(by_stage)
    assert np.abs(expected_gradient(advantages) - plain).max() > 0.05 * np.abs(plain).max()
