"""Which turns belong to which stage, what a stage earned, and on which tokens it lands."""

import dataclasses

import numpy as np
import pytest

from tarl_jax.config import RunConfig, from_config_dict
from tarl_jax.sandbox.script import Script
from tarl_jax.sandbox.shop_requests import Request
from tarl_jax.training.credit import assign, reward
from tarl_jax.training.rewarding import compare_alike, rewarded
from tarl_jax.training.stages import stages_of, states_of
from tarl_jax.types import Call, Check, Segment, Task, Trajectory

REQUESTS = (
    Request("cancel", "#W1", reason="no longer needed"),
    Request("cancel", "#W2", reason="no longer needed", denial="status"),
)
SCRIPT = Script("Ada", "Ito", "a@b", "1", "email", False, REQUESTS)
SCRIPTED = Task("s", "u", "", (Call("cancel", {}),), (), "train", "shop", SCRIPT.to_json(), 8)
FREE = dataclasses.replace(SCRIPTED, script=None, gold_calls=(Call("a", {}), Call("b", {})))


def episode(infos, task=SCRIPTED, scores=None, success=False, stop="user_stop", gold_diff=()):
    """Turns of two sampled tokens, each answered by one forced token with these facts."""
    segments = [Segment.forced("system", [7], -1, ""), Segment.forced("user", [7], -1, "Hi")]
    for turn, info in enumerate(infos):
        said = Segment("agent", [1, 2], [True, True], [-1.0, -2.0], turn, "So?", "So?")
        if "call" in info:
            said.message, said.calls = "", [Call(info["call"], {})]
        facts = {k: v for k, v in info.items() if k not in ("call", "text")}
        role = "tool" if "call" in info else "user"
        segments += [said, Segment.forced(role, [3], turn, info.get("text", ""), **facts)]
    return Trajectory(task, 0, segments, stop, success, turn_scores=scores,
                      gold_diff=list(gold_diff))


def asked(request, event="repeated", **more):
    return {"request": request, "intent": "other", "event": event, **more}


TWO = [asked(0), asked(0, "next_request"), asked(1), asked(1, "bye")]


def test_a_scripted_stage_is_the_request_under_discussion():
    stages, goals = stages_of(episode(TWO))
    assert goals == 2
    assert [(s.key, s.turns, s.right) for s in stages] == [
        (("request", 0), (0, 1), True), (("request", 1), (2, 3), True)]


def test_a_request_whose_record_came_out_wrong_is_wrong():
    stages, _ = stages_of(episode(TWO, gold_diff=["orders #W2 status: 'pending' -> 'cancelled'"]))
    assert [s.right for s in stages] == [True, False]
    other = ["orders #W25 status: 'pending' -> 'cancelled'"]
    assert all(s.right for s in stages_of(episode(TWO, gold_diff=other))[0])


@pytest.mark.parametrize("infos, stop", [
    (TWO[:3], "max_tokens"),  # cut off
    ([*TWO[:3], asked(1, "gave_up")], "user_stop"),
    ([*TWO[:3], {"call": "transfer_to_human_agents", "request": 1}], "transfer"),
])
def test_what_was_not_decided_is_not_right(infos, stop):
    stages, _ = stages_of(episode(infos, stop=stop))
    assert [s.right for s in stages] == [True, False]


def test_a_malformed_turn_belongs_to_the_request_under_discussion():
    infos = [asked(0, "next_request"), {"error": True, "malformed": True}, asked(1, "bye")]
    stages, _ = stages_of(episode(infos))
    assert [s.turns for s in stages] == [(0,), (1, 2)]


def test_turns_after_the_last_request_belong_to_none():
    stages, _ = stages_of(episode([*TWO, asked(2, "bye")]))
    assert [t for s in stages for t in s.turns] == [0, 1, 2, 3]


def test_a_request_that_only_asks_is_right_by_what_was_said():
    script = dataclasses.replace(SCRIPT, requests=(Request("ask_total", "#W1"),))
    task = dataclasses.replace(
        SCRIPTED, script=script.to_json(), outputs=("1234.5",), gold_calls=())
    told, silent = (episode([asked(0, "bye")], task=task) for _ in range(2))
    told.turns[0].message = "Order #W1 cost 1,234.5."
    assert [stages_of(e)[0][0].right for e in (told, silent)] == [True, False]


def writes(*done):
    return {"call": "write", "error": False, "wrote": True, "fulfilled": list(done)}


def test_elsewhere_a_stage_ends_when_a_goal_is_done():
    infos = [{"call": "read"}, writes(1), {"text": "ok"}, writes(0, 1), {"text": "bye"}]
    stages, goals = stages_of(episode(infos, task=FREE, success=True))
    assert goals == 2
    assert [(s.key, s.turns, s.right) for s in stages] == [
        ((), (0, 1), True), ((1,), (2, 3), True), ((0, 1), (4,), True)]
    failed, _ = stages_of(episode(infos, task=FREE, success=False))
    assert [s.right for s in failed] == [True, True, False]  # something else was broken


def test_a_goal_undone_is_no_progress():
    infos = [writes(0), writes(), {"text": "?"}, writes(0)]
    stages, _ = stages_of(episode(infos, task=FREE))
    assert [(s.key, s.turns, s.right) for s in stages] == [
        ((), (0,), True), ((0,), (1,), False), ((), (2, 3), True)]


def test_a_task_without_goals_is_one_stage_of_its_verdict():
    task = dataclasses.replace(FREE, gold_calls=(), kind="maths")
    for success in (True, False):
        (stage,), goals = stages_of(episode([{"text": ""}], task=task, success=success))
        assert (stage.key, stage.right, goals) == ((), success, 1)


def test_a_state_is_what_is_done_and_what_was_answered():
    infos = [{"call": "read", "text": "A"}, {**writes(1), "text": "B"}, {"text": "C"}]
    assert states_of(episode(infos, task=FREE)) == [((), "Hi"), ((), "A"), ((1,), "B")]


# ---- stage credit ---------------------------------------------------------------------------


def config(group_size=2, normalise="scale", **fields) -> RunConfig:
    given = {"placement": "stage", **fields}
    return from_config_dict({
        "rollout": {"group_size": group_size, "tasks_per_step": 2},
        "rl": {"normalise": normalise, "advantage": "grpo"}, "reward": given,
    })


def given(trajectories, config):
    compare_alike(trajectories, config)
    for t in trajectories:
        earned = reward(t, config, None)
        t.reward, t.reward_parts = earned.total, dataclasses.asdict(earned)
    return assign(trajectories, config, {}, None, {})


def on_turns(array):
    """The value on each turn's two tokens, which must be equal."""
    turns = array[2:].reshape(-1, 3)
    assert (turns[:, 0] == turns[:, 1]).all() and not turns[:, 2].any() and not array[:2].any()
    return turns[:, 0]


WRONG = ["orders #W1 status: 'cancelled' -> 'pending'"]


def test_a_stage_earns_its_goal_its_right_turns_and_its_deviation():
    """T / J = 8 / 2 = 4 turns a goal, so a right turn is worth 5 / 4, up to 5."""
    good = episode(TWO, scores=[1, 1, 1, 1], success=True)
    bad = episode(TWO, scores=[1, -1, 0, 1], gold_diff=WRONG)
    credit = given([good, bad], config())
    rewards = np.array([[10 + 2.5, 10 + 2.5], [0 + 1.25 - 5, 10 + 1.25]])
    gap = (rewards[0] - rewards[1]) / 10
    np.testing.assert_allclose(on_turns(credit.advantages[0]), np.repeat(gap, 2))
    np.testing.assert_allclose(on_turns(credit.advantages[1]), np.repeat(-gap, 2))
    assert credit.used.all()


def test_a_minor_turn_costs_its_stage():
    """T / J is 4 turns a goal: a right turn is worth 5 / 4, a minor one costs 2 / 4, down to 0."""
    good = episode(TWO, scores=[1, 1, 1, 1], success=True)
    slow = episode(TWO, scores=[0, 1, 0, 0], success=True)
    slow.turn_minors = [True, False, True, False]
    credit = given([good, slow], config(minor_scale=2.0))
    rewards = np.array([[10 + 2.5, 10 + 2.5], [10 + 1.25 - 0.5, 10 + 0]])
    gap = (rewards[0] - rewards[1]) / 10
    np.testing.assert_allclose(on_turns(credit.advantages[0]), np.repeat(gap, 2))
    # The episode's own reward, where T is 8.
    np.testing.assert_allclose(slow.reward_parts["turns"], 5 / 8 - 2 * 2 / 8)


def test_without_the_judge_only_goals_count():
    trajectories = [episode(TWO, scores=[1, 1, 1, 1], success=True),
                    episode(TWO, scores=[1, -1, 0, 1], gold_diff=WRONG)]
    credit = given(trajectories, config(stage_judge=False))
    np.testing.assert_allclose(on_turns(credit.advantages[0]), [1, 1, 0, 0])


def test_the_episodes_own_advantage_may_be_added():
    trajectories = [episode(TWO, scores=[1, 1, 1, 1], success=True),
                    episode(TWO, scores=[1, -1, 0, 1], gold_diff=WRONG)]
    alone = given(trajectories, config()).advantages
    both = given(trajectories, config(episode_weight=0.5)).advantages
    # 5 * 4 / 8 and 5 * 2 / 8 of +1s, and one -1.
    own = 0.5 * ((10 + 2.5) - (1.25 - 5)) / 2 / 10
    np.testing.assert_allclose(on_turns(both[0] - own) [:4], on_turns(alone[0]), atol=1e-12)


def test_an_abstention_pays_nobody():
    """A failure that was not judged would earn more than a judged one, for nothing it did."""
    def group(**fields):
        return [
            episode(TWO, scores=[0, -1, 0, 0], gold_diff=WRONG),
            episode(TWO, scores=None, gold_diff=WRONG), *[
                episode(TWO, scores=[1, 1, 1, 1], success=True) for _ in range(2)]
        ]

    scalar = {"placement": "trajectory"}
    for way in (scalar, {}):
        credit = given(group(), config(group_size=4, **way))
        judged, abstained, *_ = credit.advantages
        np.testing.assert_allclose(judged, abstained)  # both failed, and that is all one knows
        left_out = given(group(), config(group_size=4, abstained="member", **way))
        assert not np.any(left_out.advantages[1]) and not left_out.used[1]
        assert np.any(left_out.advantages[0])
    alone = given([group()[0], *group()[2:]], config(group_size=3, **scalar)).advantages
    left = given(group(), config(group_size=4, abstained="member", **scalar)).advantages
    np.testing.assert_allclose(left[0], alone[0])  # as if it had never been played


def test_checks_are_goals_and_what_held_at_the_start_was_not_achieved():
    task = dataclasses.replace(FREE, gold_calls=(), checks=(Check("a", {}), Check("b", {})))
    run = episode([{}, {"fulfilled": [0, 1]}, {}], task, success=True)
    run.segments[1].info["fulfilled"] = [0]
    stages, goals = stages_of(run)
    assert goals == 2
    found = [(s.key, s.turns, s.right) for s in stages]
    assert found == [((0,), (0, 1), True), ((0, 1), (2,), True)]
    lost = episode([{"fulfilled": []}, {}], task)
    lost.segments[1].info["fulfilled"] = [0]
    assert [s.right for s in stages_of(lost)[0]] == [False, False]
    assert [done for done, _ in states_of(run)] == [(0,), (0,), (0, 1)]


@pytest.mark.parametrize(("reward", "told"), [
    ({"placement": "stage", "stage_judge": False}, False),
    ({"placement": "stage", "stage_judge": False, "episode_weight": 1.0}, True),
    ({"placement": "stage"}, True),
    ({"placement": "trajectory"}, True),
    ({"placement": "terminal"}, False),
])
def test_a_judge_that_has_no_part_in_the_reward_does_not_abstain(reward, told):
    # Telecom's stages are judged by checks of the database alone: nobody lacks a judge there.
    run = config(**reward)
    alone = [episode([{}], success=s) for s in (True, False)]
    assert ("judge/abstained" in rewarded(alone, run, None, None)) == told
    judged = [episode([{}], success=s, scores=[0]) for s in (True, False)]
    assert rewarded(judged, run, None, None)["judge/abstained"] == 0
