"""Which token gets what, on episodes made by hand."""

import dataclasses

import numpy as np
import pytest

from tarl_jax.config import RunConfig, from_config_dict
from tarl_jax.training.credit import assign, reward
from tarl_jax.types import Segment, Task, Trajectory

PPO = {"advantage": "gae", "normalise": "none"}


def config(group_size=2, reward=None, **rl) -> RunConfig:
    rollout = {"group_size": group_size, "tasks_per_step": 2}
    rl = {"normalise": "group", **rl}
    return from_config_dict({"rollout": rollout, "rl": rl, "reward": reward or {}})


def episode(scores, success=True, task="t", kind="tool", turns=None) -> Trajectory:
    """A prompt of two tokens, then turns of two sampled tokens, each answered by one forced."""
    made = Task(task, "u", "", (), (), "train", "shop", None, 5, kind=kind)
    segments = [Segment.forced("system", [7, 7], -1, "")]
    for turn in range(len(scores) if turns is None else turns):
        segments += [
            Segment("agent", [1, 2], [True, True], [-1.0, -2.0], turn, "Shall I?",
                    message="Shall I?"),
            Segment.forced("user", [3], turn, ""),
        ]
    return Trajectory(made, 0, segments, "user_stop", success, turn_scores=scores)


def rewarded(trajectories, config, table=None):
    for t in trajectories:
        t.reward = reward(t, config, table).total
    return trajectories


def given(trajectories, config, scores=None, table=None, baselines=None):
    return assign(rewarded(trajectories, config, table), config, scores or {}, table,
                  baselines or {})


def zeros(trajectories):
    return [np.zeros(t.num_tokens) for t in trajectories]


def test_groups_get_one_number_per_episode():
    run = config(reward={"placement": "terminal"})
    trajectories = [episode([1], s, t) for t, s in (("a", True), ("a", False), ("b", True),
                                                     ("b", True))]
    got = given(trajectories, run)
    assert got.advantages == [1.0, -1.0, 0.0, 0.0]
    assert got.used.tolist() == [True, True, False, False]
    assert got.metrics["rl/zero_variance_groups"] == 0.5 and not got.fields


def test_leave_one_out_is_chosen_by_its_name():
    run = config(reward={"placement": "terminal"}, advantage="rloo", normalise="none")
    assert given([episode([1]), episode([1], False)], run).advantages == [10.0, -10.0]


def test_a_turns_score_is_added_on_its_tokens():
    run = config(reward={"placement": "terminal", "turn_weight": 0.5})
    got = given([episode([1, 0], True), episode([0, 1], False)], run)
    # Verdicts 10 and 0: +1 and -1. Scores 1, 0, 0, 1: +1, -1, -1, +1, halved.
    first, second = got.advantages
    np.testing.assert_allclose(first[[2, 3, 5, 6]], [1.5, 1.5, 0.5, 0.5])
    np.testing.assert_allclose(second[[2, 3, 5, 6]], [-1.5, -1.5, -0.5, -0.5])


def test_turns_that_were_not_judged_have_no_score_of_their_own():
    run = config(reward={"placement": "terminal", "turn_weight": 0.5})
    got = given([episode([1, 0], True), episode(None, False, turns=3)], run)
    np.testing.assert_allclose(got.advantages[1], -1)
    np.testing.assert_allclose(got.advantages[0][[2, 3, 5, 6]], [1.5, 1.5, 0.5, 0.5])


def test_equal_verdicts_teach_by_their_turns():
    run = config(reward={"placement": "terminal", "turn_weight": 1.0})
    got = given([episode([1]), episode([0])], run)
    assert got.used.all() and got.metrics["rl/zero_variance_groups"] == 0
    np.testing.assert_allclose(got.advantages[0][2:4], 1)


@pytest.mark.parametrize("placement, wanted", [
    ("trajectory", [0, 0, 0, 0, 0, 0, 0, 0, 0, 6]),
    ("turn_end", [0, 0, 0, 1, 0, 0, -5, 0, 0, 10]),
    ("terminal", [0, 0, 0, 0, 0, 0, 0, 0, 0, 10]),
])
def test_where_the_reward_is_placed(placement, wanted):
    run = config(1, {"placement": placement}, **PPO)
    trajectories = [episode([1, -1, 0])]
    # With trace 0 and values of 0 the advantage of a token is its own reward.
    run = dataclasses.replace(
        run, rl=dataclasses.replace(run.rl, value=dataclasses.replace(run.rl.value, trace=0.0))
    )
    got = given(trajectories, run, {"values": zeros(trajectories)})
    np.testing.assert_allclose(got.advantages[0], [*wanted, 0])
    np.testing.assert_allclose(got.fields["returns"][0], [*wanted, 0])


def test_a_minor_turn_costs_where_it_is_placed():
    run = config(1, {"placement": "turn_end", "minor_scale": 2.0}, **PPO)
    run = dataclasses.replace(
        run, rl=dataclasses.replace(run.rl, value=dataclasses.replace(run.rl.value, trace=0.0))
    )
    trajectories = [episode([1, 0, 0])]
    trajectories[0].turn_minors = [False, True, False]
    got = given(trajectories, run, {"values": zeros(trajectories)})
    np.testing.assert_allclose(got.advantages[0], [0, 0, 0, 1, 0, 0, -0.4, 0, 0, 10, 0])
    assert trajectories[0].reward == pytest.approx(10 + 1 - 0.4)


def test_values_are_the_baseline_and_returns_the_target():
    run = config(1, {"placement": "turn_end"}, **PPO)
    trajectories = [episode([1, 0])]
    values = [np.array([9.0, 9, 1, 2, 9, 3, 4, 9])]
    got = given(trajectories, run, {"values": values})
    np.testing.assert_allclose(got.fields["returns"][0], [0, 0, 11, 11, 0, 10, 10, 0])
    np.testing.assert_allclose(got.advantages[0], [0, 0, 10, 9, 0, 7, 6, 0])
    np.testing.assert_allclose(got.fields["values"][0], [0, 0, 1, 2, 0, 3, 4, 0])
    returns, errors = np.array([11, 11, 10, 10]), np.array([10, 9, 7, 6])
    assert got.metrics["rl/explained_variance"] == pytest.approx(1 - errors.var() / returns.var())


def test_token_advantages_are_normalised_by_kind():
    run = config(1, {"placement": "terminal"}, advantage="gae", normalise="batch")
    trajectories = [episode([1], s, t, k) for t, s, k in (
        ("a", True, "tool"), ("b", False, "tool"), ("c", True, "maths"), ("d", False, "maths"))]
    values = zeros(trajectories)
    values[2] += 10  # as sure of the one as it should be: 0 and 0
    got = given(trajectories, run, {"values": values})
    np.testing.assert_allclose(got.advantages[0][2:4], 1)
    np.testing.assert_allclose(got.advantages[1][2:4], -1)
    assert not got.advantages[2].any() and not got.advantages[3].any()


def test_a_broken_episode_teaches_no_one():
    broken = episode(None, None, turns=1)
    for run, scores in (
        (config(3), {}),
        (config(3, None, **PPO), {"values": [np.zeros(5)] * 3}),
        (config(3, None, advantage="single_stream", normalise="batch"), {}),
    ):
        got = given([episode([1]), episode([0], False), broken], run, scores)
        assert not np.any(got.advantages[2]) and not got.used[2]
        assert np.any(got.advantages[0])


def test_a_penalty_in_the_reward():
    penalty = [np.array([0, 0, 1.0, 2.0, 0]), np.zeros(5)]
    same = {"kl_coef": 0.5, "kl_in": "reward", "kl_estimator": "k1"}
    run = config(2, {"placement": "terminal"}, normalise="none", **same)
    got = given([episode([1]), episode([1], False)], run, {"kl": penalty})
    assert got.advantages == [4.25, -4.25] and got.metrics["rl/kl_penalty"] == 0.75
    run = config(1, {"placement": "terminal"}, **PPO, **same)
    trajectories = [episode([1])]
    got = given(trajectories, run, {"kl": penalty[:1], "values": zeros(trajectories)})
    np.testing.assert_allclose(got.fields["returns"][0], [0, 0, 10 - 1.5, 10 - 1.0, 0])


@pytest.mark.parametrize("normalise, wanted", [
    ("none", [4.25, -4.25]), ("group", [1, -1]), ("batch", [2**0.5, -(2**0.5)]),
])
def test_a_penalty_makes_no_difference_where_all_earned_the_same(normalise, wanted):
    """A group is flat by its rewards; its penalties, however different, enter no scale either."""
    penalty = [np.array([0, 0, 1.0, 2.0, 0]), np.zeros(5), np.full(5, 9.0), np.zeros(5)]
    run = config(2, {"placement": "terminal"}, normalise=normalise, kl_coef=0.5, kl_in="reward")
    trajectories = [episode([1]), episode([1], False), episode([1]), episode([1])]
    got = given(trajectories, run, {"kl": penalty})
    np.testing.assert_allclose(got.advantages, [*wanted, 0, 0])
    assert got.used.tolist() == [True, True, False, False]
    assert got.metrics["rl/zero_variance_groups"] == 0.5


def cut_off(stop_reason):
    found = episode([0], False)
    found.stop_reason = stop_reason
    return found


@pytest.mark.parametrize("stop_reason, mask, taught", [
    ("max_seconds", False, False), ("max_tokens", False, True), ("max_turns", False, True),
    ("max_seconds", True, False), ("max_tokens", True, False), ("max_turns", True, False),
    ("user_stop", True, True), ("malformed", True, True),
])
def test_which_cut_off_episodes_teach(stop_reason, mask, taught):
    """One that may not enters no baseline: without it the group's mean is 5, with it 10 / 3."""
    trajectories = [episode([1]), episode([1], False), cut_off(stop_reason)]
    for fields in ({"normalise": "none"}, {"normalise": "none", "advantage": "rloo"}):
        run = config(3, {"placement": "terminal"}, mask_truncated=mask, **fields)
        got = given(trajectories, run)
        assert got.used[2] == taught and got.valid.tolist() == [True, True, taught]
        if "advantage" not in fields:
            mean = 10 / 3 if taught else 5.0
            np.testing.assert_allclose(got.advantages[:2], [10 - mean, -mean])
    assert trajectories[2].success is False  # in metrics it stays the failure that it is


def test_an_episode_that_was_cut_off_for_time_has_no_part_in_other_baselines():
    trajectories = [episode([1]), episode([1], False), cut_off("max_seconds")]
    run = config(3, {"placement": "terminal"}, **PPO)
    got = given(trajectories, run, {"values": zeros(trajectories)})
    assert got.used.tolist() == [True, True, False] and not got.advantages[2].any()
    run = config(3, {"placement": "terminal"}, advantage="single_stream", normalise="none")
    assert given(trajectories, run).baselines == {"tool/t": [2.0, 5.0]}


def test_the_gap_is_staleness_where_episodes_are_played_ahead():
    run = config(2, {"placement": "terminal"}, tis_cap=2.0, max_staleness=1)
    trainer = [np.full(5, -1.5)] * 2
    got = given([episode([1]), episode([1], False)], run, {"log_probs": trainer})
    assert got.metrics["rl/staleness"] == got.metrics["rl/staleness_max"] == 0.5
    assert not any("gap" in name for name in got.metrics)


def test_truncated_weights_scale_the_advantage_and_move_the_old_log_probs():
    run = config(2, {"placement": "terminal"}, tis_cap=2.0)
    changed = np.array([5, 5, -1.0 + np.log(4), -2.0 + np.log(0.5), 5])
    trainer = [changed, np.array([5, 5, -1, -2, 5])]
    got = given([episode([1]), episode([1], False)], run, {"log_probs": trainer})
    np.testing.assert_allclose(got.advantages[0], [0, 0, 2, 0.5, 0])
    np.testing.assert_allclose(got.advantages[1], [0, 0, -1, -1, 0])
    assert got.fields["log_probs"][0] is trainer[0]
    assert got.metrics["rl/tis_capped"] == 0.25
    assert got.metrics["rl/log_prob_gap_max"] == pytest.approx(np.log(4))


def test_baselines_outlive_the_step():
    run = config(1, {"placement": "terminal"}, advantage="single_stream", normalise="none")
    first = given([episode([1], True, "a"), episode([1], False, "b")], run)
    assert first.advantages == [5.0, -5.0]  # nothing was known: the step's mean
    assert first.baselines == {"tool/a": [1.0, 10.0], "tool/b": [1.0, 0.0]}
    run = config(1, {"placement": "terminal"}, advantage="single_stream", normalise="none")
    second = given([episode([1], True, "b"), episode([1], True, "c")], run, None, None,
                   first.baselines)
    assert second.advantages == [10.0, 5.0]  # a new task begins at the mean of those known
    assert second.baselines["tool/a"] == [1.0, 10.0]
    weight, mean = second.baselines["tool/b"]
    assert (weight, mean) == (pytest.approx(1.9), pytest.approx(10 / 1.9))


def test_calibrated_turns_are_rewarded_by_their_kind():
    run = config(1, {"placement": "turn_end", "calibration": "table.json"}, **PPO)
    table = {"ask:+1": -0.5, "ask:+0": 1.0}
    trajectories = [episode([1, 0], False)]
    got = given(trajectories, run, {"values": zeros(trajectories)}, table)
    np.testing.assert_allclose(got.fields["returns"][0], [0, 0, 0.5, 0.5, 0, 1, 1, 0])
