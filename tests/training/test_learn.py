"""Which tokens of a step are updated on, how often, and what is said of it."""

import dataclasses
import types

import numpy as np
import pytest

from tarl_jax.config import RunConfig, from_config_dict
from tarl_jax.rl.batching import fullest, packed_shapes
from tarl_jax.training.credit import reward
from tarl_jax.training.learn import Learner
from tarl_jax.types import Segment, Task, Trajectory

TASKS = 6


class Updater:
    """Stands in for the device programs; remembers what it was given."""

    def __init__(self):
        self.updates, self.measured, self.scored = [], [], []

    def update(self, state, batches, reference, train_policy):
        self.updates.append(batches)
        names = ("loss", "kl", "kl_reference", "entropy", "clipped", "gap", "gap_max", "grad_norm")
        return state, dict.fromkeys(names, float(len(self.updates)))

    def measure(self, state, batches):
        self.measured.append((len(self.updates), batches))
        return {"kl": 0.25, "clip_fraction_after": 0.5}

    def score(self, state, batches, reference):
        self.scored += batches
        return {"values": [np.full(b.tokens.shape, 2.0) for b in batches]}


def config(group_size=2, **rl) -> RunConfig:
    return from_config_dict({
        "rollout": {"group_size": group_size, "tasks_per_step": TASKS}, "seed": 3,
        "rl": {"micro_batch_tokens": 64, **rl}, "reward": {"placement": "terminal"},
    })


def episode(number, success) -> Trajectory:
    """Three tokens, its own number twice among them, the last two of them sampled."""
    task = Task(f"t{number // 2}", "u", "", (), (), "train", "shop", None, 5)
    said = Segment("agent", [number, number], [True, True], [-1.0, -2.0], 0, "Yes")
    return Trajectory(task, 0, [Segment.forced("user", [99], -1, ""), said], "user_stop", success)


def played(run: RunConfig, verdicts) -> list[Trajectory]:
    found = [episode(i + 1, verdict) for i, verdict in enumerate(verdicts)]
    for t in found:
        t.reward = reward(t, run, None).total
    return found


def learned(run: RunConfig, verdicts, step=5):
    """(the stand-in, metrics) of one step."""
    updater, state = Updater(), types.SimpleNamespace(value={})
    learner, trajectories = Learner(run, updater, 1), played(run, verdicts)
    credit = learner.credit(state, None, trajectories, {})
    return updater, learner.update(step, state, None, trajectories, credit)[1]


def tokens(batches) -> list[int]:
    """Which sampled tokens there are, in order."""
    return sorted(int(t) for b in batches for t in b.tokens[b.sampled > 0])


DIFFER = (True, False) * TASKS


@pytest.mark.parametrize("fields, held", [
    ({}, False), ({"kl_coef": 0.1}, True), ({"entropy_coef": 0.01}, True),
    ({"kl_coef": 0.0, "kl_in": "loss"}, False),
])
def test_a_term_on_every_token_needs_every_episode(fields, held):
    """The first group differs; in the second both pass; in the third one is broken, one passes."""
    verdicts = (True, False, True, True, None, True) + (None, None) * 3
    updater, metrics = learned(config(minibatches=1, **fields), verdicts)
    (batches,) = updater.updates
    wanted = [1, 2, 3, 4, 6] if held else [1, 2]
    assert tokens(batches) == sorted(2 * wanted)
    (batch,) = batches
    assert set(np.unique(batch.advantages[np.isin(batch.tokens, [3, 4, 6])])) <= {0.0}
    assert metrics["rl/zero_variance_groups"] == 5 / 6  # as ever


def test_epochs_go_over_the_same_minibatches_in_other_orders():
    run = config(minibatches=TASKS, epochs=4)
    updater, _ = learned(run, DIFFER)
    played_in = [tokens(batches) for batches in updater.updates]
    assert len(played_in) == 4 * TASKS
    epochs = [played_in[i : i + TASKS] for i in range(0, len(played_in), TASKS)]
    assert epochs[0] == [[2 * n + 1] * 2 + [2 * n + 2] * 2 for n in range(TASKS)]
    for epoch in epochs[1:]:
        assert sorted(epoch) == epochs[0]
    assert len({str(epoch) for epoch in epochs}) == 4
    for batches in updater.updates:  # the old log-probs stay the sampler's
        assert {float(x) for b in batches for x in b.log_probs[b.sampled > 0]} == {-1.0, -2.0}

    def orders(run, step=5):
        return [tokens(batches) for batches in learned(run, DIFFER, step)[0].updates]

    assert orders(run) == played_in
    assert orders(dataclasses.replace(run, seed=4)) != played_in != orders(run, step=6)
    once = dataclasses.replace(run, rl=dataclasses.replace(run.rl, epochs=1))
    assert orders(once) == epochs[0]


@pytest.mark.parametrize("epochs", [1, 3])
def test_what_an_update_did_is_measured_once_behind_the_last_one(epochs):
    updater, metrics = learned(config(minibatches=3, epochs=epochs), DIFFER)
    ((after, batches),) = updater.measured
    assert after == 3 * epochs and tokens(batches) == tokens(updater.updates[-1])
    # In batches with the most rows of their length: the update's may have fewer.
    assert {b.tokens.shape for b in batches} <= set(fullest(packed_shapes(768, 64)).values())
    assert metrics["rl/kl"] == 0.25 and metrics["rl/clip_fraction_after"] == 0.5
    assert metrics["rl/log_prob_gap"] == 1.0  # of before the first


def test_what_is_not_measured_is_of_before_the_last_update():
    updater, metrics = learned(config(minibatches=3, measure_after=False), DIFFER)
    assert not updater.measured and metrics["rl/kl"] == 3.0
    assert "rl/clip_fraction_after" not in metrics


def test_a_step_that_teaches_nothing_measures_nothing():
    updater, metrics = learned(config(), (True, True) * TASKS)
    assert not updater.updates and not updater.measured and "rl/kl" not in metrics


def test_where_episodes_are_played_ahead_the_gap_is_staleness():
    _, metrics = learned(config(max_staleness=1), DIFFER)
    assert metrics["rl/staleness"] == metrics["rl/staleness_max"] == 1.0
    assert not any("gap" in name for name in metrics)


def test_a_token_without_an_alternative_has_a_value_all_the_same():
    """It leaves the loss, but GAE's chain runs through it."""
    run = config(1, advantage="gae", normalise="none", minibatches=1)
    updater, state = Updater(), types.SimpleNamespace(value={})
    trajectories = played(run, (True,) * TASKS)
    for t in trajectories:
        t.segments[1].drawn_log_probs = [0.0, -1.5]
    learner = Learner(run, updater, 1)
    credit = learner.credit(state, None, trajectories, {})
    assert sum(int(b.sampled.sum()) for b in updater.scored) == 2 * TASKS
    np.testing.assert_allclose(credit.fields["values"][0], [0, 2, 2])
    learner.update(5, state, None, trajectories, credit)
    assert tokens(updater.updates[0]) == list(range(1, TASKS + 1))
