"""An agent program with a loop of its own, trained through the server it talks to."""

import dataclasses
import json
import types
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import openai
import pytest
from serving import serving

from tarl_jax.config import ConfigError, InputError
from tarl_jax.serve import recording
from tarl_jax.serve.http import EPISODE
from tarl_jax.serve.recording import Recorder, read_recording
from tarl_jax.serve.requests import Refused
from tarl_jax.training.learn import Learner
from tarl_jax.training.policy import make_updater

GROUP = 4


def agent(url, episode, task, rewrites=False):
    """A program that knows nothing of us: it talks, and scores what it hears."""
    client = openai.OpenAI(base_url=url, api_key="none", default_headers={EPISODE: episode})
    messages, reward = [{"role": "user", "content": f"hello {task}"}], 0.0
    for _ in range(2):
        answer = client.chat.completions.create(
            model="policy", messages=messages, temperature=1.0, max_tokens=8)
        said = answer.choices[0].message.content
        reward += "e" in said
        messages += [{"role": "assistant", "content": said}, {"role": "user", "content": "more"}]
        if rewrites:
            messages = messages[-1:]
    client.post(f"/episodes/{episode}/reward", cast_to=object,
                body={"reward": reward - 1, "task": task})


def test_an_agent_of_somebody_else_is_trained(tiny_config, tiny_env, random_params, tmp_path):
    replace = dataclasses.replace
    config = replace(
        tiny_config, rollout=replace(tiny_config.rollout, group_size=GROUP, tasks_per_step=2))
    env = replace(tiny_env, config=config)
    updater = make_updater(config, env)
    learner = Learner(config, updater, 2)
    state = updater.init(random_params(config.model, env.vocab_size, 0))
    before = jax.device_get(state.policy)
    for step in (1, 2, 3):
        path = tmp_path / f"{step}.jsonl"
        with serving(env, state.policy, Recorder(path)) as url, ThreadPoolExecutor(8) as pool:
            for done in [pool.submit(agent, url, f"{step}-{i}", f"task {i % 2}")
                         for i in range(2 * GROUP)]:
                done.result()
        groups = read_recording(path)
        assert sorted(len(group) for group in groups) == [GROUP, GROUP]
        played = [t for group in groups for t in group]
        credit = learner.credit(state, None, played, {})
        # The first step's log-probs are the learner's own: what was sampled is what is learned.
        state, metrics = learner.update(step, state, None, played, credit)
        if "rl/gap_max" in metrics:
            assert metrics["rl/gap_max"] < 1e-3
    assert any(np.any(x != y) for x, y in zip(
        jax.tree.leaves(before), jax.tree.leaves(jax.device_get(state.policy)), strict=True))


def test_a_history_that_was_rewritten_is_several_trajectories(
    tiny_env, random_params, tmp_path
):
    path = tmp_path / "episodes.jsonl"
    params = random_params(tiny_env.config.model, tiny_env.vocab_size, 0)
    with serving(tiny_env, params, Recorder(path)) as url:
        agent(url, "a", "one", rewrites=True)
        agent(url, "b", "one")
        with pytest.raises(openai.NotFoundError, match="no episode 'a' is open"):
            openai.OpenAI(base_url=url, api_key="x").post(
                "/episodes/a/reward", cast_to=object, body={"reward": 1})
    (group,) = read_recording(path)
    assert len(group) == 3
    turns = [len(t.turns) for t in group]
    assert min(turns) >= 1 and turns[2] >= 2
    for t in group:
        ids, sampled, log_probs = t.arrays()
        assert sampled.any() and not sampled.all() and (log_probs[sampled] < 0).all()
        assert len(ids) == t.num_tokens


def test_a_broken_recording_names_its_line(tmp_path):
    path = tmp_path / "episodes.jsonl"
    path.write_text(json.dumps({"task": 1}) + "\n")
    with pytest.raises(InputError, match=r"episodes.jsonl:1: no trajectory"):
        read_recording(path)


def test_what_the_disk_does_not_take_stays_open(tmp_path, monkeypatch):
    for path in (tmp_path, tmp_path / "no" / "such.jsonl"):
        with pytest.raises(ConfigError, match="name a file in a folder that is there"):
            Recorder(path)
    path = tmp_path / "episodes.jsonl"
    recorder = Recorder(path)
    line = types.SimpleNamespace(to_json_line=lambda: "{}")
    monkeypatch.setattr(recording, "trajectory", lambda *of: line)
    recorder.add("a", types.SimpleNamespace(node=types.SimpleNamespace(before=None)))
    path.mkdir()
    with pytest.raises(Refused, match="could not be written") as found:
        recorder.finish("a", 1.0, "one")
    assert found.value.status == 503
    path.rmdir()
    assert recorder.finish("a", 1.0, "one") == 1 and path.read_text() == "{}\n"
    recorder.close()
