"""Groups that teach nothing are replaced: which, by what, how often, and by all processes alike."""

import dataclasses
import types

import numpy as np
import pytest

from tarl_jax.config import RLConfig, RolloutConfig, RunConfig
from tarl_jax.config.credit import RewardConfig
from tarl_jax.config.maths import MathsConfig
from tarl_jax.training import refill
from tarl_jax.training.mixture import Mixture
from tarl_jax.types import Segment, Task, Trajectory

TASKS = [Task(f"t{n}", "", "", (), (), "train", "shop", None, 1) for n in range(12)]
STEP = 7
LEARNER = types.SimpleNamespace(table=None, advantage=None)


def config(refills, **rl) -> RunConfig:
    return RunConfig(rollout=RolloutConfig(tasks_per_step=4, group_size=2, refills=refills),
                     rl=RLConfig(**rl))


def episodes(task, rewards, stop_reason="user_stop") -> list[Trajectory]:
    return [Trajectory(task, 0, [], stop_reason, r > 0, reward=r) for r in rewards]


class Collector:
    """Plays groups of given rewards, round by round; remembers what it was asked for."""

    def __init__(self, *rounds):
        self.rounds, self.asked = list(rounds), []

    def refill(self, step, number, params, planned):
        assert (step, params) == (STEP, "policy") and number == len(self.asked) + 1
        self.asked.append([one.task.task_id for one in planned])
        rewards = self.rounds[number - 1]
        assert len(rewards) == len(planned)
        return [t for one, of in zip(planned, rewards, strict=True) for t in episodes(one.task, of)]


@pytest.fixture
def refilled(monkeypatch):
    """Judge and reward leave the episodes as they are."""
    monkeypatch.setattr(refill, "judged", lambda judge, played: list(played))
    monkeypatch.setattr(refill, "rewarded", lambda *_: {})

    def run(first, collector, refills, **rl):
        mixture = Mixture(TASKS, [], 4, MathsConfig(), 0)
        tasks = mixture.tasks(STEP)
        given = [t for task, of in zip(tasks, first, strict=True) for t in (
            of if isinstance(of, list) else episodes(task, of))]
        of = types.SimpleNamespace(
            config=config(refills, **rl), judge=None, learner=LEARNER,
            parts=types.SimpleNamespace(reward=None),
        )
        found, metrics = refill.refilled(of, mixture, collector, STEP, "policy", given)
        return tasks, given, found, metrics["rollout/refilled_groups"]

    return run


def test_flat_groups_alone_are_replaced_until_none_is_left(refilled):
    collector = Collector([(1, 1), (2, 0)], [(0, 3)])
    tasks, given, found, count = refilled([(5, 0), (0, 0), (1, 0), (4, 4)], collector, 5)
    assert [t.reward for t in found] == [5, 0, 0, 3, 1, 0, 2, 0]
    assert found[:2] == given[:2] and found[4:6] == given[4:6]
    assert [len(asked) for asked in collector.asked] == [2, 1] and count == 3
    names = [t.task_id for t in tasks] + [name for asked in collector.asked for name in asked]
    assert len(set(names)) == len(names)  # tasks that the step has not had
    for i in range(0, 8, 2):  # a group has one task
        assert found[i].task is found[i + 1].task


def test_the_rounds_are_bounded(refilled):
    collector = Collector([(1, 1)] * 4, [(0, 0)] * 4)
    tasks, _, found, count = refilled([(0, 0)] * 4, collector, 2)
    assert len(collector.asked) == 2 and count == 8
    # Three times four of the twelve: each round knows what those before it have taken.
    assert len({t.task_id for t in tasks}.union(*collector.asked)) == 12
    assert [t.reward for t in found] == [0] * 8  # what is flat at last stays, and teaches nothing


def test_nothing_is_played_where_all_groups_differ(refilled):
    collector = Collector()
    _, given, found, count = refilled([(1, 0)] * 4, collector, 3)
    assert found == given and not collector.asked and count == 0


def test_further_tasks_are_a_function_of_seed_step_and_round(refilled):
    asked = []
    for _ in range(2):
        collector = Collector([(1, 1)] * 2, [(1, 0)] * 2)
        refilled([(0, 0), (1, 0), (0, 0), (1, 0)], collector, 2)
        asked.append(collector.asked)
    assert asked[0] == asked[1] and asked[0][0] != asked[0][1]


@pytest.mark.parametrize("mask, flat", [(False, False), (True, True)])
def test_masked_episodes_make_no_difference(refilled, mask, flat):
    """Where the failure was cut off for length, and that is masked, its group is flat."""
    task = Mixture(TASKS, [], 4, MathsConfig(), 0).tasks(STEP)[0]
    mixed = [*episodes(task, [5.0]), *episodes(task, [0.0], "max_tokens")]
    collector = Collector([(1, 0)])
    *_, count = refilled([mixed, (1, 0), (1, 0), (1, 0)], collector, 1, mask_truncated=mask)
    assert bool(count) == flat


def test_a_small_difference_is_one():
    of = types.SimpleNamespace(config=config(1, tis_cap=2.0), learner=LEARNER)
    found = refill.flat_groups([t for r in ((7.0, 7.0), (7.0, 6.9)) for t in episodes(TASKS[0], r)],
                               of)
    np.testing.assert_array_equal(found, [True, False])


def test_equal_sums_of_unequal_turns_teach():
    """With a term per turn a group is flat where its turns are, too."""
    of = types.SimpleNamespace(
        config=dataclasses.replace(config(1), reward=RewardConfig(turn_weight=1.0)), learner=LEARNER
    )
    found = []
    for scores in ((1, 0), (0, 1), (1, 1), (1, 1)):
        (t,) = episodes(TASKS[0], [5.0])
        t.segments = [Segment("agent", [1], [True], [-1.0], n, "Yes") for n in range(2)]
        t.turn_scores = list(scores)
        found.append(t)
    np.testing.assert_array_equal(refill.flat_groups(found, of), [False, True])
