"""What a run's episodes can hold, measured before it starts, against episodes that are played."""

import dataclasses

import numpy as np
import pytest
import qwen

from tarl_jax.config import ConfigError, from_config_dict
from tarl_jax.config.presets import sized
from tarl_jax.rollout.environment import Environment
from tarl_jax.rollout.episode import Episode
from tarl_jax.rollout.lengths import MEASURED, THOUGHT, measured, require_room
from tarl_jax.rollout.workers import Turn
from tarl_jax.sandbox.tasks import expert_plays


def changed(env, **rollout):
    config = env.config
    config = dataclasses.replace(config, rollout=dataclasses.replace(config.rollout, **rollout))
    return dataclasses.replace(env, config=config)


def played(env, task):
    """The episode of a faultless agent, turn for turn as the policy would write it."""
    turns, _ = expert_plays(env.domain, task, 100, env.config.rollout.brief_writes)
    episode = Episode(task, 0, env.domain, env.chat, env.config.rollout, env.system)
    episode.start()
    for action, _ in turns:
        ids = env.chat.agent(action)
        if episode.turn(Turn(ids, [0.0] * len(ids), [0.0] * len(ids))) is None:
            break
    return episode.trajectory()


@pytest.mark.parametrize("limit", [150, 220, 5000])
def test_what_fits_is_what_an_episode_finishes(tiny_env, limit):
    env = changed(tiny_env, max_episode_tokens=limit, max_turn_tokens=12, max_turns=30)
    found = measured(env)
    ends = [played(env, task) for task in env.train_tasks]
    assert found.fits.tolist() == [t.stop_reason != "max_tokens" for t in ends]
    whole = [t.num_tokens for t in ends if t.stop_reason == "user_stop"]
    # The last answer, the user's goodbye, is not given to the policy.
    assert all(n <= m for n, m in zip(whole, found.tokens[found.fits], strict=True))
    assert found.system == len(env.system[1]) and found.tasks == len(env.train_tasks)


def test_turns_count_too(tiny_env):
    few = measured(changed(tiny_env, max_episode_tokens=5000, max_turns=4))
    enough = measured(changed(tiny_env, max_episode_tokens=5000, max_turns=30))
    assert few.too_long > 0 == enough.too_long
    short = [task.expert_turns <= 4 for task in tiny_env.train_tasks]
    assert few.fits.tolist() == short


def test_thoughts_take_room(tiny_env):
    """Each turn but the last has its thought before the last one begins."""
    longest = THOUGHT + 40
    env = changed(tiny_env, max_episode_tokens=2000, max_turn_tokens=longest, max_turns=30)
    found, thoughts = measured(env), []
    for task in env.train_tasks:
        roles = [(s.role, len(s.token_ids)) for s in played(env, task).segments]
        last = max(i for i, (role, _) in enumerate(roles) if role == "agent")
        turns = sum(role == "agent" for role, _ in roles[:last])
        thoughts.append(sum(n for _, n in roles[:last]) + turns * THOUGHT + longest <= 2000)
    assert found.fits.all() and found.fits_thinking.tolist() == thoughts
    assert 0 < found.fits_thinking.mean() < 1 and "a thought of 300" in str(found)
    off = changed(env, thinking="off")
    assert measured(off).fits_thinking is None and "a thought" not in str(measured(off))


def test_the_shorter_presets_cut_what_is_said_of_them():
    """README, docs/sandbox.md and presets.py: 0.4% and 4.4% of retail's training tasks."""
    data = qwen.SHARED / "tau_bench/retail"
    if not data.is_dir():
        pytest.skip(f"{data} is not there")
    config = from_config_dict(sized("qwen3_8b_16k"))
    config = dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, pretrained=str(qwen.qwen_folder())),
        sandbox=dataclasses.replace(config.sandbox, data=str(data)),
    )
    env = Environment.from_config(config, own_user=lambda task, seed: None)
    assert config.rollout.max_episode_tokens == config.rl.micro_batch_tokens == 16_384
    every = measured(env, most=len(env.train_tasks))
    assert len(every.tokens) == 500
    assert every.too_long == pytest.approx(0.004, abs=5e-4)
    assert np.mean(~every.fits_thinking) == pytest.approx(0.044, abs=5e-4)


def test_a_run_whose_tasks_have_no_room_does_not_start(tiny_env):
    env = changed(tiny_env, max_episode_tokens=150, max_too_long=0.1)
    with pytest.raises(ConfigError, match=r"max_episode_tokens = 150: \d+% of the training tasks"):
        require_room(env)
    let = changed(env, max_too_long=1.0)
    text = str(require_room(let))
    assert f"of {len(env.train_tasks)} training tasks" in text
    assert "cannot fit rollout.max_episode_tokens = 150" in text


def test_tasks_without_a_script_are_played_from_their_calls(tiny_env):
    tasks = [dataclasses.replace(t, script=None) for t in tiny_env.train_tasks]
    many = tasks * (MEASURED // len(tasks) + 1)
    env: Environment = dataclasses.replace(
        changed(tiny_env, max_episode_tokens=5000, max_turns=30), train_tasks=many
    )
    found = measured(env)
    assert len(found.tokens) == MEASURED and f"{MEASURED} of {len(many)}" in str(found)
    assert np.all(found.tokens > found.system) and found.too_long == 0
