"""Advantages against values worked by hand, and GAE against a plain loop."""

import numpy as np
import pytest

from tarl_jax.rl.advantages import (
    gae,
    group_advantages,
    leave_one_out_advantages,
    standardised,
    tracked_advantages,
    truncated_weights,
)


def advantages(rewards, normalise, valid=None):
    rewards = np.array(rewards, float)
    valid = np.ones(rewards.shape, bool) if valid is None else np.array(valid, bool)
    return group_advantages(rewards, valid, normalise)


def test_group_normalisation_by_hand():
    # mean 2.5, variance (7.5^2 + 3 * 2.5^2) / 4 = 18.75: the population's, not the sample's.
    got, flat = advantages([[10, 0, 0, 0], [1, 3, 1, 3]], "group")
    np.testing.assert_allclose(
        got, [[3**0.5, -(3**-0.5), -(3**-0.5), -(3**-0.5)], [-1, 1, -1, 1]], rtol=1e-12
    )
    assert flat.tolist() == [False, False]


def test_no_normalisation_only_takes_the_groups_mean():
    got, _ = advantages([[10, 0, 2], [5, 5, 8]], "none")
    np.testing.assert_allclose(got, [[6, -4, -2], [-1, -1, 2]], rtol=1e-12)


def test_batch_normalisation_keeps_the_ratio_between_groups():
    rewards = [[0, 10], [4.9, 5.1]]
    got, flat = advantages(rewards, "batch")
    scale = ((25 + 25 + 0.01 + 0.01) / 4) ** 0.5
    np.testing.assert_allclose(got, [[-5 / scale, 5 / scale], [-0.1 / scale, 0.1 / scale]])
    assert not flat.any()
    # By group, the tiny difference would weigh as much as success.
    by_group, _ = advantages(rewards, "group")
    np.testing.assert_allclose(by_group, [[-1, 1], [-1, 1]])


def test_a_constant_added_to_a_groups_rewards_changes_nothing():
    for how in ("group", "batch", "none"):
        a, _ = advantages([[0, 10, 5], [1, 2, 3]], how)
        b, _ = advantages([[100, 110, 105], [-6, -5, -4]], how)
        np.testing.assert_allclose(a, b, atol=1e-12)


@pytest.mark.parametrize("how", ["group", "batch", "none"])
def test_zero_variance_groups_are_flagged_and_get_nothing(how):
    # 0.1 + 0.2 and 0.3 differ by rounding: that is no signal, and must not be blown up to one.
    got, flat = advantages([[7, 7, 7], [0, 3, 6], [0.1 + 0.2, 0.3, 0.3]], how)
    assert flat.tolist() == [True, False, True]
    assert not got[[0, 2]].any()
    assert got[1, 0] < 0 == got[1, 1] < got[1, 2]


@pytest.mark.parametrize("how", ["group", "batch", "none"])
@pytest.mark.parametrize("broken", [999.0, np.nan])
def test_broken_episodes_get_nothing_and_do_not_move_the_mean(how, broken):
    got, flat = advantages([[10, 0, broken], [2, 4, 3]], how,
                           valid=[[True, True, False], [True, True, True]])
    expected, _ = advantages([[10, 0]], "none")
    scale = {
        "group": 5.0,
        "batch": ((25 + 25 + 1 + 1 + 0) / 5) ** 0.5,  # five episodes count, not six
        "none": 1.0,
    }[how]
    np.testing.assert_allclose(got[0, :2], expected[0] / scale, rtol=1e-12)
    assert got[0, 2] == 0
    assert not flat.any()


@pytest.mark.parametrize("how", ["group", "batch", "none"])
def test_a_group_with_one_or_no_whole_episode_teaches_nothing(how):
    got, flat = advantages([[10, 0, 3], [1, 2, 3]], how,
                           valid=[[True, False, False], [False] * 3])
    assert not got.any() and np.isfinite(got).all()
    assert flat.tolist() == [True, True]


@pytest.mark.parametrize("how", ["group", "batch", "none"])
def test_advantages_of_a_group_sum_to_zero(how):
    rewards = np.random.default_rng(0).normal(size=(6, 8)) * 7 + 3
    got, _ = advantages(rewards, how)
    np.testing.assert_allclose(got.sum(axis=1), 0, atol=1e-12)


def test_unknown_normalisation_is_an_error():
    with pytest.raises(ValueError, match="choose group, batch, scale or none"):
        advantages([[1, 2]], "std")


def test_a_constant_scale_leaves_small_differences_small():
    rewards, valid = np.array([[10.0, 0.0], [5.0, 4.9]]), np.ones((2, 2), bool)
    got, flat = group_advantages(rewards, valid, "scale", scale_of=10.0)
    np.testing.assert_allclose(got, [[0.5, -0.5], [0.005, -0.005]])
    assert not flat.any()
    divided, _ = group_advantages(rewards, valid, "group")
    np.testing.assert_allclose(divided, [[1, -1], [1, -1]])


# ---- kinds of tasks -------------------------------------------------------------------------


def test_each_kind_has_a_scale_of_its_own():
    rewards = np.array([[0.0, 10.0], [4.0, 6.0], [0.0, 1.0]])
    valid = np.ones(rewards.shape, bool)
    got, _ = group_advantages(rewards, valid, "batch", ["shop", "shop", "maths"])
    scale = ((25 + 25 + 1 + 1) / 4) ** 0.5
    np.testing.assert_allclose(got, [[-5 / scale, 5 / scale], [-1 / scale, 1 / scale], [-1, 1]])
    for how in ("group", "none"):
        a, _ = group_advantages(rewards, valid, how, ["shop", "shop", "maths"])
        np.testing.assert_array_equal(a, group_advantages(rewards, valid, how)[0])
    with pytest.raises(ValueError, match="2 kinds for 3 tasks"):
        group_advantages(rewards, valid, "batch", ["shop", "maths"])


# ---- leave one out --------------------------------------------------------------------------


def test_leave_one_out_by_hand():
    rewards = np.array([[10.0, 0.0, 2.0], [3.0, 3.0, 3.0], [4.0, 1.0, 99.0]])
    valid = np.array([[True] * 3, [True] * 3, [True, True, False]])
    got, flat = leave_one_out_advantages(rewards, valid, "none")
    np.testing.assert_allclose(got, [[9, -6, -3], [0, 0, 0], [3, -3, 0]], atol=1e-12)
    assert flat.tolist() == [False, True, False]


def test_leave_one_out_of_a_single_episode_is_nothing():
    got, flat = leave_one_out_advantages(np.array([[7.0, 1.0]]), np.array([[True, False]]), "none")
    assert not got.any() and flat.tolist() == [True]


# ---- a baseline that outlives the step ------------------------------------------------------


def test_tracked_baseline_by_hand():
    rewards = np.array([[1.0], [0.0], [5.0]])
    valid = np.array([[True], [True], [False]])
    weights, means = np.array([4.0, 0.0, 2.0]), np.array([0.25, 0.5, 0.7])
    got, after, moved = tracked_advantages(rewards, valid, weights, means, 0.5, "none")
    np.testing.assert_allclose(got, [[0.75], [-0.5], [0]])
    np.testing.assert_allclose(after, [3, 1, 2])  # not visited: not forgotten
    np.testing.assert_allclose(moved, [0.25 + 0.75 / 3, 0.0, 0.7])


def test_tracked_baseline_is_the_mean_of_the_papers_beta():
    """Rewards of 0 and 1: a <- decay a + r, b <- decay b + 1 - r, and the mean a / (a + b)."""
    rng, decay, a, b = np.random.default_rng(0), 0.9, 1.0, 3.0
    weight, mean = np.array([a + b]), np.array([a / (a + b)])
    for r in rng.integers(0, 2, 30).astype(float):
        _, weight, mean = tracked_advantages(
            np.array([[r]]), np.ones((1, 1), bool), weight, mean, decay, "none"
        )
        a, b = decay * a + r, decay * b + 1 - r
        np.testing.assert_allclose([weight[0], mean[0]], [a + b, a / (a + b)], rtol=1e-12)


def test_tracked_advantages_are_normalised_over_the_batch():
    rewards = np.array([[1.0, 0.0], [0.0, 0.0], [10.0, 20.0]])
    zeros = np.zeros(3)
    got, _, _ = tracked_advantages(
        rewards, np.ones((3, 2), bool), zeros, zeros, 0.9, "batch", ["shop", "shop", "maths"]
    )
    spread = (0.25 - 0.25**2) ** 0.5
    np.testing.assert_allclose(got[:2], (rewards[:2] - 0.25) / spread)
    np.testing.assert_allclose(got[2], [-1, 1])


# ---- GAE ------------------------------------------------------------------------------------


def gae_by_loop(rewards, values, sampled, discount, trace):
    """One row: the sampled tokens alone, in a list, from the last to the first."""
    places = [s for s in range(len(sampled)) if sampled[s]]
    advantages, returns = np.zeros((2, len(sampled)))
    following, ahead = 0.0, 0.0
    for s in reversed(places):
        delta = rewards[s] + discount * ahead - values[s]
        following = delta + discount * trace * following
        ahead = values[s]
        advantages[s], returns[s] = following, following + values[s]
    return advantages, returns


def test_gae_by_hand():
    # Sampled at 1 and 3; delta_3 = 4 - 2 = 2; delta_1 = 1 + 0.5 * 2 - 3 = -1, A_1 = -1 + 0.25 * 2.
    rewards, values = np.array([[9.0, 1.0, 9.0, 4.0]]), np.array([[7.0, 3.0, 7.0, 2.0]])
    got, returns = gae(rewards, values, np.array([[False, True, False, True]]), 0.5, 0.5)
    np.testing.assert_allclose(got, [[0, -0.5, 0, 2]])
    np.testing.assert_allclose(returns, [[0, 2.5, 0, 4]])


@pytest.mark.parametrize("discount, trace", [(1.0, 1.0), (0.97, 0.9), (1.0, 0.0), (0.0, 1.0)])
def test_gae_equals_the_loop(discount, trace):
    rng = np.random.default_rng(0)
    rewards, values = rng.normal(size=(2, 6, 23))
    sampled = rng.random((6, 23)) < [[0.0], [0.2], [0.5], [0.8], [1.0], [0.4]]
    got = gae(rewards, values, sampled, discount, trace)
    for row in range(6):
        wanted = gae_by_loop(rewards[row], values[row], sampled[row], discount, trace)
        np.testing.assert_allclose([g[row] for g in got], wanted, rtol=1e-12, atol=1e-12)


def test_gae_does_not_see_forced_tokens():
    """However long the answers of the environment, what the agent's tokens get is the same."""
    rng = np.random.default_rng(1)
    rewards, values = rng.normal(size=(2, 1, 5))
    alone, _ = gae(rewards, values, np.ones((1, 5), bool), 0.9, 0.8)
    places = np.array([2, 3, 9, 10, 17])
    wide = rng.normal(size=(2, 1, 20)) * 100
    wide[:, :, places] = np.stack([rewards, values])
    got, _ = gae(wide[0], wide[1], np.isin(np.arange(20), places)[None], 0.9, 0.8)
    np.testing.assert_allclose(got[:, places], alone, rtol=1e-12)
    assert not np.delete(got, places, axis=1).any()


def test_without_discount_and_trace_1_it_is_the_reward_to_go_less_the_value():
    rewards, values = np.array([[1.0, 2.0, 3.0]]), np.array([[0.5, 0.25, 7.0]])
    got, returns = gae(rewards, values, np.ones((1, 3), bool), 1.0, 1.0)
    np.testing.assert_allclose(returns, [[6, 5, 3]])
    np.testing.assert_allclose(got, [[5.5, 4.75, -4]])


# ---- the rest -------------------------------------------------------------------------------


def test_standardising_by_hand():
    x, valid = np.array([[1.0, 3.0], [99.0, 5.0]]), np.array([[True, True], [False, True]])
    spread = (8 / 3) ** 0.5
    np.testing.assert_allclose(standardised(x, valid, "batch"), [[-2 / spread, 0], [0, 2 / spread]])
    np.testing.assert_allclose(standardised(x, valid, "none"), [[1, 3], [0, 5]])
    np.testing.assert_allclose(standardised(x, valid, "scale", 10.0), [[0.1, 0.3], [0, 0.5]])
    assert not standardised(np.full(3, 7.0), np.ones(3, bool), "batch").any()
    assert not standardised(x, np.zeros((2, 2), bool), "batch").any()
    with pytest.raises(ValueError, match="choose batch, scale or none"):
        standardised(x, valid, "group")


def test_discounts_may_count_turns():
    """Two turns of two tokens, the second with the reward: one step lies between them."""
    rewards, values = np.array([[0.0, 0, 0, 10]]), np.array([[1.0, 2, 3, 4]])
    sampled, turns = np.ones((1, 4), bool), np.array([[0, 0, 1, 1]])
    got, returns = gae(rewards, values, sampled, 0.5, 0.8, turns)
    last = 10 - 4
    third = (0 + 4 - 3) + last
    second = (0 + 0.5 * 3 - 2) + 0.5 * 0.8 * third
    first = (0 + 2 - 1) + second
    np.testing.assert_allclose(got, [[first, second, third, last]])
    np.testing.assert_allclose(returns, got + values)
    by_token, _ = gae(rewards, values, sampled, 0.5, 0.8)
    assert by_token[0, 2] == pytest.approx((0.5 * 4 - 3) + 0.4 * last)


def test_truncated_weights_by_hand():
    got = truncated_weights(np.log([0.5, 0.2, 0.9, 1.0]), np.log([0.25, 0.4, 0.1, 1e-300]), 2.0)
    np.testing.assert_allclose(got, [2, 0.5, 2, 2])
