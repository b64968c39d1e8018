"""Runs whose users are played over HTTP: replayed to the letter, and broken by what breaks.

A server in a process of its own says something new at every request, so that a replay which asked
it, or mixed answers up, would differ.
"""

import dataclasses
import json
import threading
from pathlib import Path

import numpy as np
import pytest
from telecom_small import small_telecom

from tarl_jax.config import ConfigError, LLMConfig, SandboxConfig, UserConfig, from_config_dict
from tarl_jax.config.presets import sized
from tarl_jax.judge.rules import judge
from tarl_jax.llm.errors import LLMError
from tarl_jax.rl.advantages import group_advantages
from tarl_jax.rl.rewards import Reward
from tarl_jax.rollout.environment import Environment
from tarl_jax.rollout.journal import KeptEpisode
from tarl_jax.rollout.workers import Turn
from tarl_jax.runs.directory import open_run_dir
from tarl_jax.runs.metrics import read_metrics, read_trajectories, trajectory_files
from tarl_jax.training.evaluation import evaluate_run, require_some
from tarl_jax.training.parts import Parts
from tarl_jax.training.train import train
from tarl_jax.types import Call, Check, Task

SHARED = Path(__file__).parents[3] / "shared"


def user_config(server, **changes):
    llm = {"model": "user", "base_url": server.url, "api_key_env": "", "max_attempts": 2,
           "backoff_seconds": 0.0, **changes.pop("llm", {})}
    return UserConfig(kind="llm", llm=LLMConfig(**llm), **changes)


@pytest.fixture
def env(tiny_config, openai_server):
    """Makes environments of the tiny config with a user that the server plays; closes them."""
    made = []

    def make(config=tiny_config, **changes):
        user = user_config(openai_server, **changes)
        made.append(Environment.from_config(dataclasses.replace(config, user=user)))
        return made[-1]

    yield make
    for one in made:
        one.close()


def say(env, episode, text="Who are you?"):
    ids = env.chat.agent(text)
    return episode.turn(Turn(ids, [-0.5] * len(ids), [-0.5] * len(ids)))


# ---- one episode --------------------------------------------------------------------------------


def test_an_episode_ends_when_the_model_says_so(openai_server, env):
    openai_server.plan()
    one = env()
    episode = one.episode(one.train_tasks[0], "test")
    prompt = episode.start()
    assert "I have a wish, number" in one.tokenizer.decode(prompt)
    answers = [say(one, episode) for _ in range(3)]
    assert [a is None for a in answers] == [False, False, True]
    trajectory = episode.trajectory()
    assert trajectory.stop_reason == "user_stop" and trajectory.success is not None
    assert trajectory.segments[-1].text == "Goodbye. ###STOP###"
    assert openai_server.report()["requests"] == 4
    assert one.user_counts()["user/calls"] == 4 and one.user_counts()["user/calls"] == 0
    # It was not a script that the user followed.
    assert trajectory.task.script is None and judge(trajectory) is None
    told = openai_server.report()["last"]["body"]["messages"][0]["content"]
    assert trajectory.task.instruction in told


def test_a_user_with_tools_calls_them_over_the_wire_and_its_recording_plays_without(
    openai_server, tiny_config, tmp_path
):
    openai_server.plan()
    steps = [{"env_type": "user", "func_name": name, "arguments": kwargs} for name, kwargs in (
        ("set_user_info", {"name": "Ada", "phone_number": "801-2"}), ("turn_data_off", {}))]
    tasks = [
        Task(split, "C2", "Mend it.", (), (), split, "tau2", None, 3,
             checks=(Check("assert_can_send_mms", {"expected_status": True}),),
             reward_basis=("ENV_ASSERTION",), initial_state={"initialization_actions": steps})
        for split in ("train", "held_out")
    ]
    trajectories = []
    for llm in ({"record": str(tmp_path / "r.jsonl")}, {"replay": str(tmp_path / "r.jsonl")}):
        user = user_config(openai_server, llm={"model": "phone", **llm})
        config = dataclasses.replace(tiny_config, user=user)
        one = Environment.from_config(config, small_telecom(), tasks)
        episode = one.episode(one.train_tasks[0], "test")
        episode.start()
        assert say(one, episode, "Use check_sim_status, then toggle_data.") is not None
        assert say(one, episode, "And fly, or toggle_planes.") is not None
        assert say(one, episode, "Now can_send_mms.") is None
        trajectories.append(episode.trajectory())
        one.close()
    assert openai_server.report()["requests"] == 7
    body = openai_server.report()["last"]["body"]
    assert len(body["tools"]) == 30 and body["tools"][0]["type"] == "function"
    found = trajectories[0]
    assert found.success and found.stop_reason == "user_stop"
    users = [s for s in found.segments if s.role == "user"]
    assert [[c["name"] for c in s.info.get("user_calls", ())] for s in users] == [
        [], ["check_sim_status", "toggle_data"], ["toggle_planes"], ["can_send_mms"]]
    assert users[2].info["user_calls"][0]["error"] is True
    assert users[1].text == "It says: Mobile Data is now ON."
    assert users[1].info["fulfilled"] == [0]
    for a, b in zip(*(t.segments for t in trajectories), strict=True):
        assert (a.text, a.token_ids, a.info) == (b.text, b.token_ids, b.info)


def test_thoughts_are_in_no_token(openai_server, env):
    openai_server.plan()
    one = env(strategy="react", llm={"model": "react"})
    episode = one.episode(one.train_tasks[0], "test")
    episode.start()
    while say(one, episode) is not None:
        pass
    trajectory = episode.trajectory()
    ids, _, _ = trajectory.arrays()
    assert "SECRET" not in one.tokenizer.decode(ids.tolist())
    assert "SECRET" not in "".join(s.text for s in trajectory.segments)
    assert "SECRET" in str([s.info for s in trajectory.segments])  # or nothing was hidden


@pytest.mark.parametrize("turns", [0, 1, 2])
def test_a_user_that_fails_breaks_its_episode_only(openai_server, env, turns):
    openai_server.plan(*["ok"] * turns, "500", "500")
    one = env()
    task = one.train_tasks[0]
    episode = one.episode(task, "test")
    prompt = episode.start()
    assert (prompt is None) == (turns == 0) and episode.outside
    forced = [say(one, episode) for _ in range(turns)]
    assert not turns or (forced[-1] is None and None not in forced[:-1])
    broken = episode.trajectory()
    assert (broken.stop_reason, broken.success) == ("infrastructure_error", None)
    assert "500" in broken.segments[-1].info["failure"]
    assert len(broken.turns) == turns
    ids, sampled, _ = broken.arrays()
    if prompt is not None:
        assert ids[: len(prompt)].tolist() == prompt and not sampled[: len(prompt)].any()
    assert judge(broken) is None
    counts = one.user_counts()
    assert counts["user/faults_server_error"] == 2 == openai_server.report()["injected"]["500"]
    assert counts["user/failed"] == 1

    again = one.episode(task, "again")
    again.start()
    while say(one, again) is not None:
        pass
    whole = again.trajectory()
    assert whole.success is not None
    # Left out of the loss, and of the mean that the others are compared with.
    valid = np.array([[t.success is not None for t in (broken, whole, whole)]])
    advantages, _ = group_advantages(np.array([[0.0, 1.0, 2.0]]), valid, "none")
    np.testing.assert_allclose(advantages, [[0.0, -0.5, 0.5]])


def test_an_error_that_all_would_meet_is_raised(openai_server, env):
    openai_server.plan("401")
    one = env()
    episode = one.episode(one.train_tasks[0], "test")
    with pytest.raises(LLMError, match="api_key_env"):
        episode.start()


def test_an_opening_without_end_breaks_the_episode(openai_server, env, tiny_config):
    openai_server.plan()
    rollout = dataclasses.replace(tiny_config.rollout, max_episode_tokens=60)
    one = env(dataclasses.replace(tiny_config, rollout=rollout),
                strategy="llm", llm={"model": "echo"})
    tasks = [dataclasses.replace(one.train_tasks[0], task_id=str(i)) for i in range(2)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tarl_jax.sandbox.llm_user.GREETING", "word " * 50)
        episodes = [one.episode(task, "test") for task in tasks]
        for episode in episodes:
            assert episode.start() is None
    assert "leave no room" in episodes[0].trajectory().segments[-1].info["failure"]
    with pytest.raises(LLMError, match="all 2 episodes are broken") as caught:
        require_some([e.trajectory() for e in episodes])
    assert caught.value.fatal


def test_episodes_play_in_threads_at_once(openai_server, env):
    one = env()
    count = len(one.train_tasks)
    # Whoever comes when: of 3/2 as many faults as episodes, which take two each at most and break
    # at the second, half of the episodes break at least. Of four more, two more at most.
    first, later = 3 * count // 2, 4
    openai_server.plan(*["500"] * first, *(["ok"] * 5 + ["500"]) * later)
    episodes = [one.episode(task, "test") for task in one.train_tasks]

    def play(episode):
        going = episode.start() is not None
        while going:
            going = say(one, episode) is not None

    threads = [threading.Thread(target=play, args=(e,)) for e in episodes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ended = [e.trajectory() for e in episodes]
    broken = sum(t.success is None for t in ended)
    assert 0 < first - count <= broken <= (first + later) // 2 < count
    counts, report = one.user_counts(), openai_server.report()
    assert counts["user/requests"] == report["requests"]
    assert counts["user/faults_server_error"] == report["injected"]["500"]
    assert counts["user/failed"] == broken


# ---- whole runs ---------------------------------------------------------------------------------


def run_config(server, folder, cache_dir, **changes):
    """The tiny size, smaller: one step, one evaluation before and one after."""
    config = sized("tiny")
    config.workdir = str(folder)
    config.log.live = False
    config.warm_start.cache_dir = str(cache_dir)
    config.warm_start.steps = 0
    config.model.num_layers = 1
    config.rollout.update(tasks_per_step=2, group_size=2, slots=2, max_episode_tokens=128,
                          max_turn_tokens=12, max_turns=3)
    config.rl.steps = 1
    config.eval.update(tasks=2, final_tasks=2, trials=2, every=0)
    config.user.update(kind="llm", strategy="react")
    config.user.llm.update(model="react", base_url=server.url, api_key_env="", max_attempts=2,
                           backoff_seconds=0.0)
    config.update_from_flattened_dict(changes)
    return from_config_dict(config)


def played(folder):
    """What the run wrote of its episodes, but for the clock; and the log-probs of all tokens."""
    files = [f for kind in ("step", "eval") for f in trajectory_files(folder, kind).values()]
    lines, log_probs = [], []
    for trajectory in (t for f in files for t in read_trajectories(f)):
        line = json.loads(dataclasses.replace(trajectory, seconds={}).to_json_line())
        for segment in line["segments"]:
            log_probs += segment.pop("log_probs")
        lines.append(json.dumps(line))
    return lines, log_probs


# With more than one dialogue under way their slots, and which are fed together, are chance, and
# round the last digit of a log-prob. 0: as many as the engine likes, more than there are slots.
@pytest.mark.parametrize("in_flight, rounding", [
    (1, 0.0), pytest.param(0, 1e-5, marks=pytest.mark.slow),
])
def test_a_recorded_run_repeats_to_the_letter_without_a_server(
    openai_server, tmp_path, cache_dir, in_flight, rounding
):
    openai_server.plan(fractions={"500": 0.2, "400": 0.1}, seed=4)
    record = str(tmp_path / "record.jsonl")
    at_once = {"rollout.in_flight": in_flight}
    first = run_config(
        openai_server, tmp_path / "first", cache_dir, **at_once, **{"user.llm.record": record}
    )
    train(first)
    sent = openai_server.report()
    episodes, log_probs = played(tmp_path / "first")
    assert any('"infrastructure_error"' in line for line in episodes)
    assert any("I have a wish" in line for line in episodes)
    values = read_metrics(tmp_path / "first")
    step = next(r for r in values if r["kind"] == "train")
    assert step["user/calls"] > 0 and 0 <= step["rollout/broken"] < 1
    counted = [r.get("user/requests", r.get("eval/user/requests")) for r in values]
    assert len(counted) == 3 and sum(counted) == sent["requests"]
    faults = [r.get("user/faults_server_error", r.get("eval/user/faults_server_error"))
              for r in values]
    assert sum(faults) == sent["injected"]["500"]

    openai_server.plan()
    again = run_config(
        openai_server, tmp_path / "again", cache_dir, **at_once,
        **{"user.llm.replay": record, "user.llm.base_url": "http://127.0.0.1:9"},
    )
    train(again)
    assert openai_server.report()["requests"] == 0
    same, again_log_probs = played(tmp_path / "again")
    assert same == episodes
    np.testing.assert_allclose(again_log_probs, log_probs, rtol=0, atol=rounding)
    replayed = next(r for r in read_metrics(tmp_path / "again") if r["kind"] == "train")
    assert replayed["user/replayed"] == replayed["user/calls"] == step["user/calls"]
    for name in ("rl/loss", "reward/mean", "train/pass_rate", "rollout/broken"):
        value = step.get(name)
        assert replayed.get(name) == (value and pytest.approx(value, rel=10 * rounding, abs=0))


def test_a_run_is_judged_by_a_model_and_an_evaluation_of_it_pays_nothing_twice(
    openai_server, tmp_path, cache_dir
):
    openai_server.plan(fractions={"500": 0.1}, seed=1)
    judge = {"judge.kind": "llm", "judge.llm.model": "judge", "judge.llm.api_key_env": "",
             "judge.llm.base_url": openai_server.url, "judge.llm.max_attempts": 2,
             "judge.llm.backoff_seconds": 0.0, "user.kind": "scripted"}
    config = run_config(openai_server, tmp_path / "run", cache_dir, **judge)
    train(config)
    records = read_metrics(tmp_path / "run")
    step = next(r for r in records if r["kind"] == "train")
    scored = [t for f in trajectory_files(tmp_path / "run", "step").values()
              for t in read_trajectories(f)]
    judged = [t for t in scored if t.turn_scores is not None]
    assert step["judge/calls"] >= len(scored) and judged
    assert step["judge/abstained"] == pytest.approx(1 - len(judged) / len(scored))
    # The server says +1, 0, +1, …
    assert all(t.turn_scores == [(i + 1) % 2 for i in range(len(t.turns))] for t in judged)
    assert all(note.startswith("reason") for t in judged for note in t.judge_notes)
    spent = openai_server.report()["requests"]
    openai_server.plan()
    evaluate_run(config, step=1, parts=Parts())
    # What failed every attempt was never answered, so it alone is asked again.
    assert openai_server.report()["requests"] <= sum(t.turn_scores is None for t in scored) + 4
    assert spent >= len(scored)


def test_a_run_whose_users_are_all_gone_stops(openai_server, tmp_path, cache_dir):
    openai_server.plan(fractions={"500": 1.0})
    config = run_config(openai_server, tmp_path / "run", cache_dir)
    with pytest.raises(LLMError, match="all 4 episodes are broken; the last one: react at http"):
        train(config)


def test_a_spent_budget_stops_the_run_and_a_larger_one_continues_it(tmp_path):
    config = from_config_dict({"workdir": str(tmp_path / "run"), "user": {"kind": "llm"}})
    (open_run_dir(config) / "checkpoints" / "0").mkdir(parents=True)
    llm = dataclasses.replace(config.user.llm, max_calls=10, base_url="http://there/v1")
    open_run_dir(dataclasses.replace(config, user=dataclasses.replace(config.user, llm=llm)))
    other = dataclasses.replace(config.user, strategy="react")
    with pytest.raises(ConfigError, match=r"user\.strategy"):
        open_run_dir(dataclasses.replace(config, user=other))


# ---- benchmark data -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data():
    folder = SHARED / "tau_bench/retail"
    if not (folder / "db.json").is_file():
        pytest.skip(f"{folder} is not there")
    return str(folder)


def test_benchmark_tasks_need_a_user_that_is_a_model(tiny_config, data):
    config = dataclasses.replace(tiny_config, sandbox=SandboxConfig(data=data))
    with pytest.raises(ValueError, match=r"has no script .* --config.user.kind=llm"):
        Environment.from_config(config)


def test_an_episode_on_benchmark_data(openai_server, env, tiny_config, data):
    openai_server.plan()
    rollout = dataclasses.replace(
        tiny_config.rollout, max_episode_tokens=4096, system_prompt="brief"
    )
    one = env(dataclasses.replace(tiny_config, sandbox=SandboxConfig(data=data), rollout=rollout))
    task = next(t for t in one.train_tasks if t.gold_calls)
    assert one.held_out_tasks and task.source == "tau_bench"
    episode = one.episode(task, "test")
    episode.start()
    for call in task.gold_calls:
        ids = one.chat.agent(Call(call.name, call.kwargs))
        assert episode.turn(Turn(ids, [0.0] * len(ids), [0.0] * len(ids))) is not None
    while say(one, episode) is not None:
        pass
    assert episode.trajectory().success is True
    told = json.dumps(openai_server.report()["last"]["body"]["messages"])
    assert json.dumps(task.instruction)[1:-1] in told and task.gold_calls[0].name not in told


# ---- kills in the middle of a rollout -----------------------------------------------------------


class Killed(BaseException):
    """Nothing may catch it, as nothing catches a kill."""


@pytest.mark.slow
def test_a_run_that_is_killed_in_rollouts_asks_nothing_twice_and_ends_the_same(
    openai_server, tmp_path, cache_dir, monkeypatch
):
    """In the evaluation before training and in the second step; the users are asked over HTTP."""
    whole, cut = (run_config(
        openai_server, tmp_path / name, cache_dir,
        **{"user.strategy": "llm", "user.llm.model": "echo", "rollout.in_flight": 1, "rl.steps": 2,
           "checkpoint.every": 1, "rl.learning_rate": 1e-2, "eval.tasks": 1, "eval.final_tasks": 1,
           "reward.placement": "trajectory"},
    ) for name in ("whole", "cut"))
    # Something that the episodes of a group differ in, so that updates change the parameters.
    parts = Parts(reward=lambda t, config: Reward(float(t.arrays()[0].sum() % 101), 0.0, 0.0))
    turns, left, play = [0], [10**6], KeptEpisode.turn

    def turn(self, turn):
        if not left[0]:
            raise Killed
        left[0] -= 1
        turns[0] += 1
        return play(self, turn)

    monkeypatch.setattr(KeptEpisode, "turn", turn)
    openai_server.plan()
    train(whole, parts)
    asked, played_turns = openai_server.report()["requests"], turns[0]
    assert asked > 10 and played_turns > 12

    openai_server.plan()
    in_base = sum(len(t.turns) for t in read_trajectories(
        trajectory_files(tmp_path / "whole", "eval")[0])) - 1
    in_step = played_turns - in_base - 3
    for count, step in ((in_base, 0), (in_step, 1)):
        left[0] = count
        with pytest.raises(Killed):
            train(cut, parts)
        steps = [r["step"] for r in read_metrics(tmp_path / "cut")
                 ] if (tmp_path / "cut/metrics.jsonl").exists() else []
        assert max(steps, default=0) == step
    left[0] = 10**6
    train(cut, parts)
    assert openai_server.report()["requests"] == asked
    states = [checkpoint_bytes(tmp_path / name, 2) for name in ("whole", "cut")]
    assert states[0] == states[1] and checkpoint_bytes(tmp_path / "whole", 1) != states[0]
    assert played(tmp_path / "whole") == played(tmp_path / "cut")
    assert not list((tmp_path / "cut/journal").glob("eval*"))


def checkpoint_bytes(folder, step):
    """Every array of a checkpoint."""
    import jax
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as checkpointer:
        tree = checkpointer.restore((folder / "checkpoints" / str(step) / "state").absolute())
    return [np.asarray(x).tobytes() for x in jax.tree.leaves(tree)]
