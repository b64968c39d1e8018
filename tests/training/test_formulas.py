"""Every formula of credit, worked again in plain float64 loops from the episodes of a small run."""

import dataclasses
import math

import numpy as np
import pytest

from tarl_jax.config import from_config_dict
from tarl_jax.config.presets import sized
from tarl_jax.runs.metrics import read_metrics, read_trajectories, trajectory_files
from tarl_jax.training.credit import assign
from tarl_jax.training.rewarding import rewarded
from tarl_jax.training.train import train

GROUP = 4


@pytest.fixture(scope="module")
def run(tmp_path_factory, cache_dir):
    """(config, episodes per step, metrics per step) of two steps of the main config."""
    config = sized("")  # begins at the package's warm start, which passes some and fails some
    config.warm_start.cache_dir = str(cache_dir)
    config.reward.placement, config.reward.episode_weight = "stage", 1.0
    config.reward.minor_scale = 2.0
    config.rollout.update({"group_size": GROUP, "tasks_per_step": 8, "slots": 32})
    config.tasks.requests = (0.3, 0.4, 0.3)
    config.rl.steps, config.rl.minibatches, config.log.trajectories = 2, 1, 32
    config.eval.update({"every": 0, "tasks": 2, "final_tasks": 2, "trials": 2})
    folder = tmp_path_factory.mktemp("runs") / "formulas"
    config = dataclasses.replace(from_config_dict(config), workdir=str(folder))
    train(config)
    steps = [read_trajectories(p) for p in trajectory_files(folder).values()]
    return config, steps, [r for r in read_metrics(folder) if r["kind"] == "train"]


def by_hand(episodes, config):
    """Per episode and sampled token its advantage, by loops alone."""
    c, rl = config.reward, config.rl
    groups = [episodes[i : i + GROUP] for i in range(0, len(episodes), GROUP)]
    rewards = [[scalar(t, c) for t in g] for g in groups]
    found = []
    for number, (group, of) in enumerate(zip(groups, rewards, strict=True)):
        for e, t in enumerate(group):
            per_turn = [0.0] * len(t.turns)
            weight = c.episode_weight if c.placement == "stage" else 1.0
            if rl.advantage != "return_to_go":
                own = episode_advantage(group, of, e, rl, c, rewards)
                per_turn = [weight * own] * len(t.turns)
            if c.placement == "stage":
                for key, turns, right, goals in stages(t):
                    others = [
                        stage_reward(o, oturns, oright, ogoals, c)
                        for j, o in enumerate(group) if j != e
                        for okey, oturns, oright, ogoals in stages(o) if okey == key
                    ]
                    elsewhere = [
                        stage_reward(o, oturns, oright, ogoals, c)
                        for k, g in enumerate(groups) if k != number for o in g
                        for _, oturns, oright, ogoals in stages(o)
                    ]
                    mean = average(others) if others else average(elsewhere)
                    gap = stage_reward(t, turns, right, goals, c) - mean
                    for turn in turns:
                        per_turn[turn] += gap / 10.0
            if rl.advantage == "return_to_go":
                mine = returns(t, c, rl.turn_discount)
                for i, value in enumerate(mine):
                    others = [returns(o, c, rl.turn_discount)[i] for j, o in enumerate(group)
                              if j != e and len(o.turns) > i]
                    elsewhere = [x for k, g in enumerate(groups) if k != number for o in g
                                 for x in returns(o, c, rl.turn_discount)]
                    mean = average(others) if others else average(elsewhere)
                    per_turn[i] = (value - mean) / 10.0
            if rl.advantage == "gigpo":
                at = [(states(o), returns(o, c, rl.turn_discount)) for o in group]
                for i, value in enumerate(at[e][1]):
                    same = [v for s, r in at for k, v in zip(s, r, strict=True)
                            if k == at[e][0][i]]
                    per_turn[i] += c.turn_weight * (value - average(same)) / 10.0
            if rl.advantage == "mt_grpo":
                for i, score in enumerate(t.turn_scores):
                    same = [o.turn_scores[i] for o in group if len(o.turns) > i]
                    per_turn[i] += c.turn_weight * (score - average(same)) / c.turn_scale
            elif rl.advantage in ("grpo", "rloo") and c.turn_weight:
                every = [s for o in group for s in o.turn_scores]
                for i, score in enumerate(t.turn_scores):
                    per_turn[i] += c.turn_weight * (score - average(every)) / c.turn_scale
            found.append(per_turn)
    return found


def average(values):
    return math.fsum(values) / len(values) if values else 0.0


def parts(t, c):
    """(verdict, turns, majors) of the whole episode."""
    scores, minors = t.turn_scores, t.turn_minors
    length = len(scores) if c.denominator == "taken" else t.task.expert_turns
    good = c.turn_scale * scores.count(1) / length
    good -= min(good, c.minor_scale * sum(minors) / length)
    if c.placement == "terminal":
        return 10.0 * bool(t.success), 0.0, 0.0
    return 10.0 * bool(t.success), min(good, c.turn_cap), -5.0 * (-1 in scores)


def scalar(t, c):
    return math.fsum(parts(t, c))


def episode_advantage(group, rewards, e, rl, c, everything):
    if rl.advantage == "gdpo":
        found = 0.0
        for k in range(3):
            column = [parts(t, c)[k] for t in group]
            spread = math.sqrt(average([(x - average(column)) ** 2 for x in column]))
            found += (column[e] - average(column)) / spread if spread > 1e-6 else 0.0
        return found
    if rl.advantage == "mt_grpo":
        rewards = [10.0 * bool(t.success) for t in group]
    gap = rewards[e] - average(rewards)
    if rl.advantage == "rloo":
        gap = rewards[e] - average(rewards[:e] + rewards[e + 1 :])
    if rl.normalise == "group":
        spread = math.sqrt(average([(x - average(rewards)) ** 2 for x in rewards]))
        return gap / spread if spread > 1e-6 else 0.0
    if rl.normalise == "batch":
        squares = [(x - average(g)) ** 2 for g in everything for x in g]
        return gap / math.sqrt(average(squares))
    return gap / (10.0 if rl.normalise == "scale" else 1.0)


def answers(t):
    return {s.turn: s for s in t.segments if s.role in ("user", "tool")}


def stages(t):
    """(key, turns, right, goals) by the request under discussion."""
    of, now, found, decided = answers(t), 0, {}, set()
    for turn in t.turns:
        info = of[turn.turn].info if turn.turn in of else {}
        now = info.get("request", now)
        found.setdefault(now, []).append(turn.turn)
        if info.get("event") in ("next_request", "bye"):
            decided.add(now)
            now += info["event"] == "next_request"
    requests = t.task.script["requests"]
    wrong = {line.split(" ")[1] for line in t.gold_diff}
    return [
        (i, turns, i in decided and requests[i]["order_id"] not in wrong, len(requests))
        for i, turns in sorted(found.items()) if i < len(requests)
    ]


def stage_reward(t, turns, right, goals, c):
    good = [t.turn_scores[i] for i in turns].count(1)
    length = t.task.expert_turns / goals
    earned = c.turn_scale * good / max(length, 1)
    earned -= min(earned, c.minor_scale * sum(t.turn_minors[i] for i in turns) / max(length, 1))
    major = any(t.turn_scores[i] == -1 for i in turns)
    return 10.0 * right + min(earned, 5.0) - 5.0 * major


def returns(t, c, discount):
    """Each turn's part of the reward where it was earned, and the discounted sums from there on."""
    rewards, sum_so_far = [], 0.0
    for i, score in enumerate(t.turn_scores):
        if c.placement == "terminal":
            rewards.append(0.0)
            continue
        before = min(sum_so_far, c.turn_cap)
        sum_so_far += c.turn_scale * (score == 1) / t.task.expert_turns
        first = score == -1 and -1 not in t.turn_scores[:i]
        rewards.append(min(sum_so_far, c.turn_cap) - before - 5.0 * first)
    rewards[-1] += 10.0 * bool(t.success)
    return [
        math.fsum(discount ** (k - i) * rewards[k] for k in range(i, len(rewards)))
        for i in range(len(rewards))
    ]


def states(t):
    of, done, last = answers(t), [], t.segments[1].text
    found = []
    for turn in t.turns:
        found.append((tuple(done), last))
        if turn.turn in of:
            done, last = of[turn.turn].info.get("fulfilled", done), of[turn.turn].text
    return found


def on_tokens(t, per_turn):
    """[S]; the turns' values on the tokens that they sampled."""
    values, turn = [], 0
    for segment in t.segments:
        mine = per_turn[turn] if segment.role == "agent" else 0.0
        values += [mine if sampled else 0.0 for sampled in segment.sampled]
        turn += segment.role == "agent"
    return np.array(values)


WAYS = {
    "verdict, divided": ({"placement": "terminal"}, {"normalise": "group"}),
    "verdict": ({"placement": "terminal"}, {}),
    "RLOO": ({}, {"advantage": "rloo", "normalise": "none"}),
    "TARL": ({}, {}),
    "TARL, published": ({"denominator": "taken"}, {"normalise": "group"}),
    "TARL, batch": ({}, {"normalise": "batch"}),
    "minor turns cost": ({"minor_scale": 2.0}, {}),
    "hybrid": ({"turn_weight": 0.5}, {}),
    "stage": ({"placement": "stage"}, {}),
    "stage and scalar": (
        {"placement": "stage", "episode_weight": 1.0, "minor_scale": 2.0}, {}),
    "GiGPO": ({"placement": "terminal", "turn_weight": 1.0},
              {"advantage": "gigpo", "turn_discount": 0.95}),
    "return to go": ({}, {"advantage": "return_to_go", "turn_discount": 0.9}),
    "GDPO": ({}, {"advantage": "gdpo", "normalise": "none"}),
    "MT-GRPO": ({"turn_weight": 0.5}, {"advantage": "mt_grpo"}),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_way_is_what_its_formula_says(run, way):
    config, steps, _ = run
    reward, rl = WAYS[way]
    config = from_config_dict({
        "rollout": {"group_size": GROUP, "tasks_per_step": 4}, "reward": reward, "rl": rl,
    })
    moved = 0
    for episodes in steps:
        episodes = [dataclasses.replace(t) for t in episodes]
        rewarded(episodes, config, None, None)
        credit = assign(episodes, config, {}, None, {})
        for t, got, per_turn in zip(
            episodes, credit.advantages, by_hand(episodes, config), strict=True
        ):
            wanted = on_tokens(t, per_turn)
            sampled = t.arrays()[1]
            got = np.broadcast_to(np.asarray(got), wanted.shape)
            np.testing.assert_allclose(got[sampled], wanted[sampled], rtol=1e-9, atol=1e-9)
            moved += bool(np.any(got))
    assert moved > 16, "hardly an episode teaches: the test sees nothing"


def test_the_runs_own_loss_is_that_of_its_formula(run):
    """At the first update of a step every ratio is 1: the loss is minus the mean advantage."""
    config, steps, metrics = run
    seen = 0
    for episodes, step in zip(steps, metrics, strict=True):
        assert [t.reward for t in episodes] == pytest.approx(
            [scalar(t, config.reward) for t in episodes])
        values = [on_tokens(t, v) for t, v in zip(episodes, by_hand(episodes, config), strict=True)]
        used = [(v, t.arrays()[1]) for v, t in zip(values, episodes, strict=True) if v.any()]
        if not used:
            continue
        tokens = sum(int(sampled.sum()) for _, sampled in used)
        mean = math.fsum(float(v[sampled].sum()) for v, sampled in used) / tokens
        assert step["rl/loss"] == pytest.approx(-mean, rel=1e-4, abs=1e-6)
        seen += 1
    assert seen >= 2
