"""What a run will ask, against requests that a user really makes, and episodes counted by hand."""

import dataclasses

import jax
import numpy as np
import pytest

from tarl_jax.config import ConfigError, LLMConfig, UserConfig
from tarl_jax.judge.request import request
from tarl_jax.llm.errors import LLMError
from tarl_jax.llm.transport import Completion
from tarl_jax.models.decoder import init_params
from tarl_jax.rollout.environment import Environment
from tarl_jax.rollout.lengths import faultless
from tarl_jax.rollout.workers import Turn
from tarl_jax.sandbox.llm_user import LLMUser
from tarl_jax.training import estimate as module
from tarl_jax.training.dry_run import dry_run
from tarl_jax.training.estimate import Asked, estimate
from tarl_jax.training.parts import Parts

PRICES = {"usd_per_million_input": 2.0, "usd_per_million_output": 8.0}


@pytest.fixture
def asking(tiny_config):
    """Makes an environment whose user is a language model, and closes it."""
    made = []

    def make(strategy="llm", **changes):
        config = dataclasses.replace(
            tiny_config, **changes, user=UserConfig(
                kind="llm", strategy=strategy, llm=LLMConfig(api_key_env="", **PRICES)
            ),
        )
        made.append(Environment.from_config(config))
        return made[-1]

    yield make
    for env in made:
        env.close()


class Service:
    """Says what it is told to, and keeps what it was asked."""

    def __init__(self, answers):
        self.answers, self.asked = iter(answers), []

    def complete(self, messages, **_):
        self.asked.append([dict(m) for m in messages])
        return Completion(next(self.answers))


@pytest.mark.parametrize("strategy", ["llm", "react"])
def test_a_faultless_episode_s_user_is_asked_so_often_and_so_much(asking, strategy):
    env = asking(strategy)
    thought = "t" * 4 * 60 if strategy == "react" else ""  # sixty tokens
    for task in env.train_tasks[:4]:
        opening, turns = faultless(env, task)
        heard = [action for action, _ in turns if isinstance(action, str)]
        said = [opening, *(answer for action, answer in turns if isinstance(action, str))]
        wrote = [f"Thought: {thought}\nUser Response: {s}" if thought else s for s in said]
        service = Service(wrote)
        user = LLMUser(task.instruction, service, env.config.user, "k")
        assert user.opening() == opening
        for message in heard:
            user.reply(message)
        sent = sum(len(m["content"]) for messages in service.asked for m in messages) / 4
        calls, prompts, written = module._user(env, task)
        assert calls[0] == len(service.asked)
        # Labels before thought and message are a few characters more.
        assert prompts[0] == pytest.approx(sent, rel=0.05)
        assert written[0] == pytest.approx(sum(map(len, wrote)) / 4, rel=0.25)
        assert (calls[1], *map(bool, (prompts[1] > prompts[0], written[1] > written[0]))) == (
            env.config.rollout.max_turns + 1, True, True
        )


def test_a_supervised_user_is_asked_two_to_five_times(asking):
    plain, watched = (module._user(asking(s), asking().train_tasks[0]) for s in ("llm", "verify"))
    assert watched[0, 0] == 2 * plain[0, 0] and watched[0, 1] == 5 * plain[0, 1]


def test_a_judge_is_shown_the_whole_episode(tiny_env):
    """Against the request that a played episode makes."""
    for task in tiny_env.train_tasks[:3]:
        episode = tiny_env.episode(task, "judged")
        ids = episode.start()
        _, turns = faultless(tiny_env, task)
        for action, _ in turns:
            written = tiny_env.chat.agent(action)
            ids = episode.turn(Turn(written, [-0.5] * len(written), [-0.5] * len(written)))
            if ids is None:
                break
        sent = sum(len(m["content"]) for m in request(episode.trajectory(), 1)) / 4
        calls, prompts, written = module._judge(tiny_env, task)
        assert calls.tolist() == [1, 3]
        # What stands around the parts, and the changes of the database, are not in the guess.
        assert 0.5 * sent < prompts[0] <= sent
        assert written[0] == 40 * len(turns)


def test_episodes_are_counted_by_hand(asking, tiny_config):
    """3 steps of 4 x 4; all held-out tasks x 4 before and after, 2 x 4 after step 2."""
    env = asking(
        rl=dataclasses.replace(tiny_config.rl, steps=3),
        rollout=dataclasses.replace(tiny_config.rollout, tasks_per_step=4, group_size=4),
        eval=dataclasses.replace(tiny_config.eval, every=2, tasks=2, final_tasks=99, trials=4),
    )
    held = len(env.held_out_tasks)
    assert 2 < held < 32 and len(env.train_tasks) < 32  # all of them are played
    (asked,) = estimate(env.config, env, env, Parts())
    per_task = np.mean([module._user(env, t)[0] for t in env.train_tasks], axis=0)
    held_out = np.mean([module._user(env, t)[0] for t in env.held_out_tasks], axis=0)
    wanted = per_task * 48 + held_out * (2 * held * 4 + 2 * 4)
    assert asked.calls == pytest.approx(np.ceil(wanted), abs=1)
    (rest,) = estimate(env.config, env, env, Parts(), done=2)
    wanted = per_task * 16 + held_out * held * 4
    assert rest.calls == pytest.approx(np.ceil(wanted), abs=1)
    refilled = dataclasses.replace(
        env.config, rollout=dataclasses.replace(env.config.rollout, refills=1)
    )
    (more,) = estimate(refilled, env, env, Parts())
    assert more.calls[0] == asked.calls[0]
    assert more.calls[1] - asked.calls[1] == pytest.approx(48 * per_task[1], abs=2)
    assert estimate(env.config, env, env, Parts(user=lambda task, seed: None)) == []
    assert estimate(tiny_config, Environment.from_config(tiny_config), env, Parts()) == []


def asked_of(**llm):
    return Asked("user", LLMConfig(**llm), np.array([100.0, 300.0]), np.array([2e6, 4e6]),
                 np.array([1e6, 2e6]))


def test_cost_and_budgets_are_said():
    assert asked_of().usd is None and "give user.llm.usd_per_million_input" in asked_of().lines()[0]
    priced = asked_of(**PRICES)
    np.testing.assert_allclose(priced.usd, [2 * 2 + 8, 4 * 2 + 2 * 8])
    assert priced.lines() == [
        "cost: the user (gpt-4.1) is asked 100 to 300 times: 2 to 4 million tokens in, 1 to 2"
        " million out; 12 to 24 USD",
        "cost: no budget: set config.user.llm.max_usd or max_calls",
    ]
    small = asked_of(**PRICES, max_usd=11.0).lines()
    assert len(small) == 2 and "config.user.llm.max_usd = 11.0 is less than that" in small[1]
    assert len(asked_of(**PRICES, max_usd=12.0).lines()) == 1
    assert "max_calls = 99 is less" in asked_of(max_calls=99).lines()[1]
    (replayed,) = asked_of(replay="r.jsonl").lines()
    assert "nothing is asked" in replayed


# ---- the dry run --------------------------------------------------------------------------------


def test_a_dry_run_says_all_and_leaves_nothing(tiny_config, openai_server, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    openai_server.plan()
    llm = LLMConfig(base_url=openai_server.url, api_key_env="", max_calls=10)
    config = dataclasses.replace(
        tiny_config, workdir="", user=UserConfig(kind="llm", llm=llm),
        judge=dataclasses.replace(tiny_config.judge, kind="llm", llm=llm),
    )
    said = list(dry_run(config))
    begins = [line.split(":")[0].split(" ")[0] for line in said]
    assert begins == ["run", "devices", "model", "memory", "turns", "tasks", "steps", "lengths",
                      *["cost"] * 4, "all"]
    shapes = jax.eval_shape(lambda: init_params(config.model, 1523, jax.random.key(0)))
    count = sum(x.size for x in jax.tree.leaves(shapes))
    assert f"{count:,} parameters, {count:,} train" in said[2]
    assert f"{config.tasks.num_train} to train on" in said[5]
    assert "max_calls = 10 is less" in said[9]
    assert openai_server.report()["requests"] == 0
    assert not list(tmp_path.iterdir())


def test_a_dry_run_refuses_what_the_run_would(tiny_config, tmp_path):
    keyless = dataclasses.replace(
        tiny_config, workdir=str(tmp_path / "run"),
        user=UserConfig(kind="llm", llm=LLMConfig(api_key_env="NO_SUCH_KEY_HERE")),
    )
    with pytest.raises(LLMError, match="NO_SUCH_KEY_HERE"):
        list(dry_run(keyless))
    many = dataclasses.replace(
        tiny_config, rollout=dataclasses.replace(tiny_config.rollout, tasks_per_step=97)
    )
    with pytest.raises(ValueError, match="tasks_per_step = 97: there are"):
        list(dry_run(many))
    wide = dataclasses.replace(
        tiny_config, mesh=dataclasses.replace(tiny_config.mesh, rollout_tensor=8)
    )
    with pytest.raises(ConfigError, match=r"mesh\.rollout_tensor = 8"):
        list(dry_run(wide))
    assert not list(tmp_path.iterdir())
