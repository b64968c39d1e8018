"""Group advantages against values worked by hand."""

import numpy as np
import pytest

from tarl_jax.rl.advantages import group_advantages


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
    with pytest.raises(ValueError, match="choose group, batch or none"):
        advantages([[1, 2]], "std")
