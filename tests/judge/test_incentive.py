"""What scores would teach: shares by hand and by the sandbox, and the published signs."""

import dataclasses
import math

import numpy as np
import pytest
from judged import episode

from tarl_jax.config import RewardConfig
from tarl_jax.judge.incentive import incentive, pass_rates, right_share, turn_terms
from tarl_jax.judge.rules import Judgement
from tarl_jax.sandbox.verifier import verify

A, B = "orders #W1 status: 'pending' -> 'cancelled'", "orders #W2 x[0].y: 1 -> 2"


def judged(scores):
    """The judgement of these scores; None where there are none."""
    return None if scores is None else Judgement(scores, [""] * len(scores))


@pytest.mark.parametrize(("diff", "gold_diff", "share"), [
    ([A], [], 1.0),
    ([], ["orders #W1 status: 'cancelled' -> 'pending'"], 0.0),
    ([B], ["orders #W1 status: 'cancelled' -> 'pending'", B], 0.0),  # B: nobody wanted it
    ([A, B], [B], 1.0),
    ([A], [A], None),
    ([], [], None),
    ([A, B], ["orders #W2 x[0].y: 3 -> 2"], 0.5),
    ([A, "orders #W2: (absent) -> {'a b': 1}"], ["orders #W2 a: 2 -> 1"], 0.5),
])
def test_the_share_that_ended_right_by_hand(diff, gold_diff, share):
    assert right_share(episode([1], diff=diff, gold_diff=gold_diff)) == share


def test_the_share_is_what_the_sandbox_says(tiny_env):
    """Some of the gold calls, and calls of other tasks, played: compared record by record."""
    domain, rng, seen = tiny_env.domain, np.random.default_rng(0), set()
    tasks = [t for t in tiny_env.train_tasks if t.gold_calls]
    for _ in range(60):
        mine, other = rng.choice(len(tasks), 2, replace=False)
        gold = [(c.name, dict(c.kwargs)) for t in (tasks[mine], tasks[mine - 1])
                for c in t.gold_calls]
        live, right = domain.new_state(), domain.new_state()
        for name, kwargs in gold:
            domain.call(right, name, kwargs)
        played = [c for c in gold if rng.random() < 0.6]
        played += [(c.name, dict(c.kwargs)) for c in tasks[other].gold_calls]
        for name, kwargs in played:
            domain.call(live, name, kwargs)
        wanted = right.changes()
        done = [live.get(*where) == record for where, record in wanted.items()]
        t = episode([1], diff=list(domain.diff(live)),
                    gold_diff=list(verify(domain, live, gold).diff))
        assert right_share(t) == (np.mean(done) if done else None)
        seen.add(right_share(t))
    assert len(seen) > 2


def test_pass_rates_leave_out_what_was_not_judged():
    group = [(episode([1], success=s), judged(scores)) for s, scores in (
        (True, [1]), (False, [0]), (True, [1]), (True, [-1]), (False, [1, -1]), (True, None),
        (None, [1]))]
    clean, major = pass_rates([group])
    assert (clean.passed, clean.episodes, major.passed, major.episodes) == (2, 3, 1, 2)


def test_the_terms_of_the_reward_by_hand():
    t = episode([1, 1, 0, -1], expert_turns=8)
    judgement = judged(t.turn_scores)
    assert turn_terms(t, judgement, RewardConfig()) == 5 * 2 / 8 - 5
    minor = dataclasses.replace(judgement, minors=[False, False, True, False])
    assert turn_terms(t, minor, RewardConfig(minor_scale=2.0)) == 5 * 2 / 8 - 2 / 8 - 5
    taken = RewardConfig(denominator="taken", placement="terminal")
    assert turn_terms(t, judgement, taken) == 5 * 2 / 4 - 5


def failing(done, scores, of=4):
    """An episode that has done so many of its orders, and failed."""
    diff = [f"orders #W{i} x: 0 -> 1" for i in range(done)]
    missed = [f"orders #W{i} x: 1 -> 0" for i in range(done, of)]
    return episode(scores, success=False, diff=diff, gold_diff=missed, expert_turns=20), judged(
        scores)


def test_a_mean_over_the_turns_taken_pays_for_giving_up():
    """The published finding: who goes on errs on the way, who stops early keeps a high mean."""
    groups = [[failing(d, [1] * (2 + 2 * d) + [0] * 3 * d) for d in (0, 1, 2, 3)]] * 3
    taken = incentive(groups, RewardConfig(denominator="taken"), failing=True)
    constant = incentive(groups, RewardConfig(denominator="expert"), failing=True)
    assert taken.value < -0.8 and constant.value > 0.9
    assert taken.groups == 3 and taken.high < 0


def test_the_correlation_is_inside_groups_by_hand():
    config = RewardConfig(denominator="expert", major_scale=5.0, turn_scale=20.0, turn_cap=99.0)
    one = [failing(d, [1] * n) for d, n in ((0, 1), (1, 3), (2, 2))]
    other = [failing(d, [1] * n) for d, n in ((3, 9), (4, 9))]  # centring takes its height away
    x, y = np.array([-1.0, 1, 0, 0, 0]), np.array([-0.25, 0, 0.25, -0.125, 0.125])
    found = incentive([one, other], config)
    assert found.value == pytest.approx(x @ y / math.sqrt((x @ x) * (y @ y)))
    assert found.low <= found.value <= found.high and found.groups == 2


def test_groups_with_a_success_are_apart():
    group = [failing(0, [1]), failing(1, [1, 1])]
    passed = dataclasses.replace(group[1][0], success=True)
    mixed = [group[0], (passed, group[1][1])]
    assert incentive([mixed], RewardConfig()).groups == 1
    none = incentive([mixed], RewardConfig(), failing=True)
    assert none.groups == 0 and math.isnan(none.value) and math.isnan(none.low)
