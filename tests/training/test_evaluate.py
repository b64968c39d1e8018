"""pass^k and its intervals by hand, and the metrics of a few hand-made trajectories."""

import dataclasses
import itertools
import math

import numpy as np
import pytest

from tarl_jax.config import JudgeConfig, NoiseConfig
from tarl_jax.judge.service import Judge
from tarl_jax.rollout.environment import Environment
from tarl_jax.rollout.running import EngineStats
from tarl_jax.rollout.workers import Turn
from tarl_jax.training.evaluation import (
    behaviour,
    bootstrap_interval,
    by_kind,
    evaluate,
    held_out,
    maths_metrics,
    pass_hat_k,
    summarise,
    summarise_maths,
)
from tarl_jax.types import Call, Segment, Task, Trajectory

# ---- pass^k ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("passed", "trials", "k", "expected"),
    [
        (2, 4, 1, 1 / 2),
        (2, 4, 2, 1 / 6),
        (2, 4, 3, 0),
        (3, 4, 2, 1 / 2),
        (3, 4, 3, 1 / 4),
        (3, 4, 4, 0),
        (4, 4, 4, 1),
        (0, 4, 1, 0),
        (5, 8, 4, 5 / 70),
    ],
)
def test_pass_hat_k_by_hand(passed, trials, k, expected):
    assert pass_hat_k(np.array([passed]), trials, k) == pytest.approx(expected)


@pytest.mark.parametrize("k", [1, 2, 3, 4, 5])
def test_pass_hat_k_counts_the_ways_to_draw_k_trials(k):
    """All k must pass; that at least one does is pass@k, and much higher."""
    trials = 5
    for passed in range(trials + 1):
        outcomes = [True] * passed + [False] * (trials - passed)
        draws = list(itertools.combinations(outcomes, k))
        value = pass_hat_k(np.array([passed]), trials, k)[0]
        assert value == pytest.approx(sum(map(all, draws)) / len(draws))
        if 0 < passed < trials and k > 1:
            assert value < sum(map(any, draws)) / len(draws)


def test_pass_hat_k_is_per_task():
    np.testing.assert_allclose(pass_hat_k(np.array([0, 2, 4]), 4, 2), [0, 1 / 6, 1])


@pytest.mark.parametrize("k", [0, 5])
def test_pass_hat_k_needs_enough_trials(k):
    with pytest.raises(ValueError, match="trials"):
        pass_hat_k(np.array([1]), 4, k)


# ---- intervals ------------------------------------------------------------------------------


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        per_task = rng.binomial(4, 0.3, 60) / 4
        low, high = bootstrap_interval(per_task, 300, rng)
        assert low <= per_task.mean() <= high
        covered += low <= 0.3 <= high
    assert 0.9 <= covered / 200 <= 0.99


def test_the_interval_has_the_width_of_a_normal_one():
    rng = np.random.default_rng(1)
    per_task = rng.random(400)
    low, high = bootstrap_interval(per_task, 4000, rng)
    assert high - low == pytest.approx(2 * 1.96 * per_task.std() / math.sqrt(400), rel=0.1)


def test_tasks_that_are_all_alike_have_no_interval():
    assert bootstrap_interval(np.ones(5), 50, np.random.default_rng(0)) == (1.0, 1.0)


# ---- a summary by hand ----------------------------------------------------------------------

TASK = Task(
    task_id="t", user_id="u", instruction="", gold_calls=(), outputs=(), split="held_out",
    source="shop", script=None, expert_turns=2,
)


def trajectory(success, scores, stop="user_stop", outputs_found=True) -> Trajectory:
    """Six prompt tokens, then per score a turn of three tokens and an answer of two.

    Turn 0 asks, turn 1 calls a tool (with a question mark in it), turn 2 is malformed.
    """
    turns = [
        ("Which order?", [], {}),
        ("", [Call("look", {"why": "?"})], {}),
        ("", [], {"malformed": "empty"}),
    ]
    segments = [Segment.forced("user", [1] * 6, -1, "Hi?")]
    for i, (message, calls, info) in enumerate(turns[: len(scores or [0])]):
        text = f"<think>\nWhy?\n</think>\n\n{message}"
        segments.append(Segment("agent", [2] * 3, [True] * 3, [-1.0] * 3, i, text, message, calls,
                                "Why?", info=info))
        segments.append(Segment.forced("user", [3] * 2, i, "Yes?"))
    return Trajectory(TASK, 0, segments, stop, success, outputs_found, turn_scores=scores)


def test_a_summary_by_hand():
    trajectories = [
        # A task that passes twice of four times, once of these with a major deviation.
        trajectory(True, [1, 1, 0]),
        trajectory(True, [1, -1, 0]),
        trajectory(False, [1, -1, -1], "max_turns"),
        trajectory(None, None, "infrastructure_error"),
        # A task that always passes; one episode has no scores, and tells nothing of deviations.
        trajectory(True, [1]),
        trajectory(True, [1], outputs_found=False),
        trajectory(True, None, "transfer"),
        trajectory(True, [0, 1], "max_tokens"),
    ]
    metrics = summarise(trajectories, trials=4, draws=100, seed=0)
    expected = {
        "eval/pass^1": (2 / 4 + 1) / 2,
        "eval/pass^2": (1 / 6 + 1) / 2,
        "eval/pass^3": (0 + 1) / 2,
        "eval/pass^4": (0 + 1) / 2,
        "eval/clean_pass": (1 / 4 + 1) / 2,
        "eval/major_share": (2 / 3 + 0) / 2,  # of those that were judged
        "eval/pass_variance": (2 * 2 / 12 + 0) / 2,
        "eval/entropy": 1.0,
        "eval/broken": 1 / 8,
        "eval/outputs_found": 7 / 8,
        "eval/tasks": 2,
        "eval/turns": (3 * 3 + 1 * 4 + 2) / 8,
        "eval/waits": 1.0,  # neither the call nor the users' question marks
        "eval/malformed": 3 / 8,
        "eval/episode_tokens": 6 + 5 * (3 * 3 + 1 * 4 + 2) / 8,
        "eval/transfers": 1 / 8,
        "eval/truncated": 2 / 8,
    }
    assert {k: metrics[k] for k in expected} == pytest.approx(expected)
    for name in ("pass^1", "pass^2", "pass^3", "pass^4", "clean_pass", "major_share"):
        low, high = metrics[f"eval/{name}_low"], metrics[f"eval/{name}_high"]
        assert 0 <= low <= metrics[f"eval/{name}"] <= high <= 1
    assert metrics["eval/pass^1_low"] == 0.5 and metrics["eval/pass^1_high"] == 1.0


def test_required_outputs_are_a_second_measure_beside_the_first():
    asking = dataclasses.replace(TASK, outputs=("54.04",))
    trajectories = [
        # A task that requires an output: right, said; right, not said; wrong, said; broken.
        trajectory(True, [1]),
        trajectory(True, [1], outputs_found=False),
        trajectory(False, [1]),
        trajectory(None, None),
        # One that requires none, right four times.
        *(trajectory(True, [1]) for _ in range(4)),
    ]
    for t in trajectories[:4]:
        t.task = asking
    metrics = summarise(trajectories, trials=4, draws=50, seed=0)
    expected = {
        "eval/pass^1": (2 / 4 + 1) / 2,
        "eval/pass^2": (1 / 6 + 1) / 2,
        "eval/pass^1_with_outputs": (1 / 4 + 1) / 2,
        "eval/pass^2_with_outputs": (0 + 1) / 2,
        "eval/pass^4_with_outputs": (0 + 1) / 2,
    }
    assert {k: metrics[k] for k in expected} == pytest.approx(expected)
    assert metrics["eval/pass^1_with_outputs_low"] == 0.25
    without = summarise(trajectories[4:], trials=4, draws=50, seed=0)
    assert not [name for name in without if "with_outputs" in name]


def test_tau2_tasks_are_counted_by_their_reward_basis():
    """Four episodes of two tasks with a right database: one without what it says, one cut off."""
    said = dataclasses.replace(TASK, reward_basis=("DB", "COMMUNICATE"), outputs=("1",), actions=())
    asked = dataclasses.replace(
        TASK, reward_basis=("DB", "NL_ASSERTION"), assertions=("Polite.",), actions=()
    )
    episodes = [
        trajectory(True, None), trajectory(True, None, outputs_found=False),
        trajectory(True, None), trajectory(False, None, "max_turns"),
    ]
    for episode, task in zip(episodes, (said, said, asked, asked), strict=True):
        episode.task = task
    found = summarise(episodes, 2, 10, 0)
    assert found["eval/tau2_pass^1"] == 0.25 and found["eval/tau2_pass^2"] == 0
    assert found["eval/tau2_unjudged"] == 0.25
    assert found["eval/pass^1"] == 0.75
    episodes[2].assertions_met = [True]
    found = summarise(episodes, 2, 10, 0)
    assert found["eval/tau2_pass^1"] == 0.5 and found["eval/tau2_unjudged"] == 0
    assert "eval/tau2_pass^1" not in summarise([trajectory(True, None)], 1, 10, 0)


def test_a_broken_episode_is_a_failure_not_a_gap():
    broken = summarise([trajectory(True, [1]), trajectory(None, None)], 2, 10, 0)
    failed = summarise([trajectory(True, [1]), trajectory(False, [1])], 2, 10, 0)
    for key in ("eval/pass^1", "eval/pass^2", "eval/clean_pass"):
        assert broken[key] == failed[key]


def test_fewer_trials_give_fewer_k():
    metrics = summarise([trajectory(True, [1])] * 4, trials=2, draws=10, seed=0)
    assert "eval/pass^2" in metrics and "eval/pass^3" not in metrics


def test_the_same_seed_gives_the_same_interval():
    rng = np.random.default_rng(0)
    some = [trajectory(bool(rng.random() < 0.5), [1]) for _ in range(40)]
    assert summarise(some, 4, 50, 1) == summarise(some, 4, 50, 1)
    assert summarise(some, 4, 50, 1) != summarise(some, 4, 50, 2)


def test_an_episode_without_turns_has_none():
    nothing = Trajectory(TASK, 0, [Segment.forced("user", [1], -1, "Hi")], "max_tokens", False)
    assert behaviour([nothing])["turns"] == 0 and behaviour([nothing])["truncated"] == 1


# ---- maths problems -------------------------------------------------------------------------

PROBLEM = dataclasses.replace(TASK, kind="maths", source="arithmetic", outputs=("2",))


def solved(success, answer="2", stop="answered") -> Trajectory:
    """A prompt of six tokens and a turn of three."""
    info = {} if answer is None else {"answer": answer}
    segments = [
        Segment.forced("user", [1] * 6, -1, "1+1?"),
        Segment("agent", [2] * 3, [True] * 3, [-1.0] * 3, 0, "", info=info),
    ]
    return Trajectory(PROBLEM, 0, segments, stop, success)


MATHS = [
    solved(True), solved(True), solved(False, "3"), solved(False, None, "max_tokens"),
    solved(False, None), solved(False, None, "malformed"), solved(False, "5"), solved(False, "7"),
]


def test_maths_metrics_by_hand():
    step = maths_metrics(MATHS, others=24)
    assert step == pytest.approx({
        "maths/pass_rate": 2 / 8, "maths/share": 8 / 32, "maths/episode_tokens": 9,
        "maths/answered": 5 / 8, "maths/malformed": 1 / 8, "maths/truncated": 1 / 8,
    })
    evaluation = summarise_maths(MATHS, trials=4, draws=200, seed=0)
    assert evaluation["eval/maths_pass@1"] == 2 / 8
    assert (evaluation["eval/maths_pass@1_low"], evaluation["eval/maths_pass@1_high"]) == (0, 0.5)
    assert evaluation["eval/maths_answered"] == 5 / 8
    assert maths_metrics([], others=24) == {}


def test_kinds_are_told_apart_in_order():
    mixed = [MATHS[0], trajectory(True, [1]), MATHS[2]]
    assert by_kind(mixed) == ([mixed[1]], [mixed[0], mixed[2]])


# ---- episodes -------------------------------------------------------------------------------


class TransferringEngine:
    """Stands in for the engine: every policy hands over at once."""

    def __init__(self, env):
        self.chat = env.chat
        self.seeds: list[int] = []
        self.temperature = 0.0

    def run(self, params, episodes, temperature, progress=None, *, ended=None, truncation=None):
        ids = self.chat.agent(Call("transfer_to_human_agents", {"summary": "no"}))
        self.temperature = temperature
        for episode in episodes:
            self.seeds.append(episode.seed)
            episode.start()
            assert episode.turn(Turn(ids, [0.0] * len(ids), [0.0] * len(ids))) is None
            if ended:
                ended(episode)
        return EngineStats(episodes=len(episodes))


def test_trials_lie_side_by_side_and_are_judged(tiny_env, tmp_path):
    engine, config = TransferringEngine(tiny_env), tiny_env.config.eval
    tasks = tiny_env.held_out_tasks[:3]
    noisy = JudgeConfig(noise=NoiseConfig(abstain=1.0))  # which evaluations leave out
    metrics, trajectories = evaluate(
        engine, None, tiny_env, tasks, "eval", judge=Judge(noisy, tmp_path)
    )
    names = [t.task.task_id for t in trajectories]
    assert names == [task.task_id for task in tasks for _ in range(config.trials)]
    assert all(len(t.turn_scores) == len(t.judge_notes) == 1 for t in trajectories)
    assert metrics["eval/transfers"] == 1.0 and metrics["eval/tasks"] == 3
    assert metrics["eval/judge/abstained"] == 0
    assert engine.temperature == config.temperature
    assert len(set(engine.seeds)) == len(engine.seeds)


def test_the_stream_names_the_episodes(tiny_env):
    seeds = []
    for stream in ("eval", "eval", "eval-20"):
        engine = TransferringEngine(tiny_env)
        evaluate(engine, None, tiny_env, tiny_env.held_out_tasks[:2], stream)
        seeds.append(engine.seeds)
    assert seeds[0] == seeds[1] and not set(seeds[0]) & set(seeds[2])


def test_without_a_judge_nothing_is_judged(tiny_env):
    metrics, trajectories = evaluate(
        TransferringEngine(tiny_env), None, tiny_env, tiny_env.held_out_tasks[:1], "eval"
    )
    assert {t.turn_scores for t in trajectories} == {None}
    assert metrics["eval/judge/abstained"] == 1
    assert not {"eval/major_share", "eval/clean_pass"} & metrics.keys()  # nobody looked


def test_an_evaluation_with_maths_leaves_the_tool_tasks_numbers_alone(tiny_config, tiny_env):
    config = dataclasses.replace(
        tiny_config, eval=dataclasses.replace(tiny_config.eval, maths_tasks=3),
        maths=dataclasses.replace(tiny_config.maths, num_train=4, num_held_out=4),
    )
    env = Environment.from_config(config)
    tasks = held_out(env, 2)
    assert [t.kind for t in tasks] == ["tool"] * 2 + ["maths"] * 3
    assert tasks[2:] == env.maths.held_out_tasks[:3]
    assert held_out(tiny_env, 2) == tiny_env.held_out_tasks[:2]
    metrics, trajectories = evaluate(TransferringEngine(env), None, env, tasks, "eval")
    alone, _ = evaluate(TransferringEngine(tiny_env), None, tiny_env, tasks[:2], "eval")
    assert len(trajectories) == 5 * config.eval.trials
    assert {k: v for k, v in metrics.items() if "maths" not in k} == alone
    assert metrics["eval/maths_pass@1"] == 0 and metrics["eval/maths_malformed"] == 1


# ---- apart from training --------------------------------------------------------------------


def test_evaluations_may_play_elsewhere(tiny_config, tiny_env):
    replace = dataclasses.replace
    assert tiny_env.evaluation() is tiny_env
    config = replace(tiny_config, eval=replace(tiny_config.eval, domain="airline"),
                     tasks=replace(tiny_config.tasks, requests=(1.0,)))
    env = Environment.from_config(config)
    elsewhere = env.evaluation()
    assert elsewhere.domain.name == "airline" and env.domain.name == "retail"
    assert [t.task_id for t in held_out(elsewhere, 2)] == ["carrier-held_out-0",
                                                           "carrier-held_out-1"]
    assert elsewhere.system[1] != env.system[1] and not elsewhere.train_tasks
    assert {t.task_id for t in env.held_out_tasks} == {
        t.task_id for t in Environment.from_config(replace(config, eval=tiny_config.eval))
        .held_out_tasks
    }
    episode = elsewhere.episode(elsewhere.held_out_tasks[0], "eval")
    prompt = env.tokenizer.decode(episode.start())
    assert "airline" in prompt or "flight" in prompt or "reservation" in prompt


def test_a_greedy_evaluation_repeats_itself_whatever_the_seeds(tiny_config, random_params):
    """The same scripted user says the same to the same words; two seeds sample other words."""
    replace = dataclasses.replace

    def said(temperature, top_k=0):
        config = replace(tiny_config, eval=replace(
            tiny_config.eval, temperature=temperature, top_k=top_k, trials=2, bootstrap=10,
        ))
        env = Environment.from_config(config)
        params = random_params(config.model, env.vocab_size, 0)
        _, trajectories = evaluate(env.engine(), params, env, env.held_out_tasks[:3], "eval")
        return [t.turns[0].token_ids for t in trajectories]

    greedy, cut, drawn = said(0.0), said(1.0, top_k=1), said(1.0)
    assert greedy == cut != drawn
