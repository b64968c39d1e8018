"""A maths problem as an episode: what crosses between it and the engine, and its verdict."""

import dataclasses
import importlib.util
import json

import numpy as np
import pytest

from tarl_jax.config import ConfigError
from tarl_jax.judge.rules import judge
from tarl_jax.rollout.environment import Environment
from tarl_jax.rollout.maths_episode import MathsEpisode
from tarl_jax.rollout.workers import Turn
from tarl_jax.types import STOP_REASONS, Call, Trajectory


@pytest.fixture(scope="module")
def env(tiny_config):
    maths = dataclasses.replace(tiny_config.maths, ratio=(0.5,), num_train=8, num_held_out=4)
    return Environment.from_config(dataclasses.replace(tiny_config, maths=maths))


def play(env, task, ids):
    episode = env.episode(task, "test")
    assert isinstance(episode, MathsEpisode)
    prompt = episode.start()
    log_probs = [-0.5 - i for i in range(len(ids))]
    assert episode.turn(Turn(list(ids), log_probs, log_probs)) is None
    trajectory = episode.trajectory()
    tokens, sampled, kept = trajectory.arrays()
    assert tokens.tolist() == prompt + ids
    assert sampled.tolist() == [False] * len(prompt) + [True] * len(ids)
    np.testing.assert_array_equal(kept, np.float32([0.0] * len(prompt) + log_probs))
    assert trajectory.stop_reason in STOP_REASONS
    return trajectory


def test_a_right_answer_succeeds_and_round_trips(env):
    task = env.maths.train_tasks[0]
    said = f"It is\n\\boxed{{{task.outputs[0]}}}"
    trajectory = play(env, task, env.chat.agent(said))
    assert trajectory.success is True and trajectory.stop_reason == "answered"
    assert trajectory.turns[0].text == said
    assert trajectory.turns[0].info == {"answer": task.outputs[0]}
    assert Trajectory.from_json_line(trajectory.to_json_line()) == trajectory


def test_the_prompt_is_a_chat_of_its_own(env):
    task = env.maths.train_tasks[0]
    prompt = env.tokenizer.decode(env.episode(task, "test").start())
    assert prompt == (
        "<|im_start|>system\nSolve the problem. Put the answer in \\boxed{}.<|im_end|>\n"
        f"<|im_start|>user\n{task.instruction}<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize("said, stop, malformed", [
    ("\\boxed{-1}", "answered", False),
    ("I do not know", "answered", False),
    (Call("calculate", {"expression": "1+1"}), "malformed", True),
    ("", "malformed", True),
])
def test_whatever_else_fails(env, said, stop, malformed):
    trajectory = play(env, env.maths.train_tasks[0], env.chat.agent(said))
    assert trajectory.success is False and trajectory.stop_reason == stop
    assert ("malformed" in trajectory.turns[0].info) == malformed


def test_a_cut_solution_fails_even_where_the_answer_is_there(env):
    task = env.maths.train_tasks[0]
    ids = env.chat.agent(f"\\boxed{{{task.outputs[0]}}}")[:-1]
    trajectory = play(env, task, ids)
    assert trajectory.success is False and trajectory.stop_reason == "max_tokens"


def test_the_judge_has_nothing_to_say(env):
    trajectory = play(env, env.maths.train_tasks[0], env.chat.agent("\\boxed{1}"))
    assert judge(trajectory) is None


def test_an_episode_that_still_runs_has_no_record(env):
    episode = env.episode(env.maths.train_tasks[0], "test")
    episode.start()
    with pytest.raises(RuntimeError, match="has not ended"):
        episode.trajectory()


def test_a_run_without_maths_has_no_problems(tiny_env):
    assert tiny_env.maths is None


def test_problems_that_leave_no_room_are_left_out_and_counted(tiny_config):
    maths = dataclasses.replace(tiny_config.maths, ratio=(0.5,), num_train=200, num_held_out=100)

    def made(limit):
        rollout = dataclasses.replace(tiny_config.rollout, max_episode_tokens=limit)
        config = dataclasses.replace(tiny_config, maths=maths, rollout=rollout)
        return Environment.from_config(config)

    env = made(90)
    problems = env.maths.train_tasks + env.maths.held_out_tasks
    assert 0 < env.maths.too_long == 300 - len(problems) < 300
    for task in problems:
        assert len(env.episode(task).start()) + tiny_config.rollout.max_turn_tokens <= 90
    with pytest.raises(ValueError, match=r"max_episode_tokens = 60.*room for a turn of 12"):
        made(60)


def test_a_files_answers_are_checked_by_meaning_or_the_missing_package_is_named(
    tiny_config, tmp_path, monkeypatch
):
    path = tmp_path / "problems.json"
    record = {"problem": "What is 1/2?", "answer": "\\frac{1}{2}"}
    path.write_text(json.dumps([record, {**record, "problem": "What is 2/4?"}]))
    maths = dataclasses.replace(
        tiny_config.maths, ratio=(0.5,), file=str(path), num_held_out=1
    )
    config = dataclasses.replace(tiny_config, maths=maths)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"problems.json.*pip install -e '\.\[maths\]'"):
        Environment.from_config(config)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    env = Environment.from_config(config)
    task, = env.maths.train_tasks
    assert play(env, task, env.chat.agent("\\boxed{0.50}")).success is True
    assert play(env, task, env.chat.agent("\\boxed{0.51}")).success is False
