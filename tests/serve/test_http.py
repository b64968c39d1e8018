"""The server in this process: both caches, too many requests, and users and judges by it."""

import concurrent.futures
import dataclasses
import json
import socket
import urllib.request

import numpy as np
import openai
import pytest
from serving import Played, serving

from tarl_jax.config import LLMConfig
from tarl_jax.judge.service import Judge
from tarl_jax.parallel.mesh import make_mesh
from tarl_jax.rollout.engine import Engine
from tarl_jax.rollout.environment import Environment
from tarl_jax.rollout.grammar import build
from tarl_jax.serve.policy import HttpLimits

TOOLS = [{"type": "function", "function": {"name": name, "parameters": {"type": "object"}}}
         for name in ("cancel_pending_order", "get_order_details")]


def with_rollout(env, **changes):
    """The environment with other fields of `rollout`."""
    rollout = dataclasses.replace(env.config.rollout, **changes)
    return dataclasses.replace(env, config=dataclasses.replace(env.config, rollout=rollout))


def metrics(url):
    with urllib.request.urlopen(url.removesuffix("v1") + "metrics") as answer:
        return answer.read().decode()


def said_behind(message):
    """The answer as a client sends it back, and what it says to it."""
    sent = message.model_dump(exclude_none=True)
    if not message.tool_calls:
        return [sent, {"role": "user", "content": "go on"}]
    return [sent, {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "go on"}]


@pytest.mark.parametrize("cache", ["contiguous", "pages"])
def test_a_served_conversation_is_the_engines_with_either_cache(tiny_env, random_params, cache):
    """Of a policy that writes anything, and ends most of its turns."""
    env = with_rollout(tiny_env, cache=cache, max_turn_tokens=24, max_episode_tokens=512)
    rollout = env.config.rollout
    params = random_params(env.config.model, env.vocab_size, 0)
    params["embed"][env.chat.stop_id] *= 8
    names = [tool["function"]["name"] for tool in TOOLS]
    grammar = build(env.tokenizer, names, env.vocab_size, env.chat.begin)
    engine = Engine(env.config.model, rollout, env.tokenizer.stop_ids, make_mesh(), grammar)
    written = ended = 0
    with serving(env, params) as url:
        client = openai.OpenAI(base_url=url, api_key="none", max_retries=0)
        for temperature in (0.0, 1.0):
            played = [Played(env, 4, seed, f"mark {seed}") for seed in range(3)]
            engine.run(params, played, temperature)

            def play(seed, temperature=temperature):
                messages, found = [{"role": "user", "content": f"mark {seed}"}], []
                for _ in range(4):
                    choice = client.chat.completions.create(
                        model="policy", messages=messages, tools=TOOLS, seed=seed, logprobs=True,
                        temperature=temperature, extra_body={"return_token_ids": True},
                    ).choices[0]
                    found.append((choice.token_ids, [t.logprob for t in choice.logprobs.content]))
                    messages += said_behind(choice.message)
                return found

            with concurrent.futures.ThreadPoolExecutor(3) as pool:
                served = list(pool.map(play, range(3)))
            for one, other in zip(served, played, strict=True):
                assert [ids for ids, _ in one] == [list(ids) for ids, _ in other.answers]
                for (_, found), (_, expected) in zip(one, other.answers, strict=True):
                    np.testing.assert_allclose(found, expected, atol=1e-4)
                    written, ended = written + len(found), ended + bool(expected)
    assert written > 60 and ended > 12


def test_too_many_at_once_are_told_to_come_back(tiny_env, random_params):
    params = random_params(tiny_env.config.model, tiny_env.vocab_size, 0)
    body = json.dumps({"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}).encode()
    with serving(tiny_env, params, limits=HttpLimits(requests=1)) as url:
        client = openai.OpenAI(base_url=url, api_key="none", max_retries=0)
        port = int(url.split(":")[2].split("/")[0])
        with socket.create_connection(("127.0.0.1", port)) as slow:
            slow.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\n"
                         b"content-length: %d\r\n\r\n" % len(body) + body[:9])
            while "requests_open 2" not in metrics(url):
                pass  # the metrics' own request is the other one
            with pytest.raises(openai.RateLimitError, match="come back") as refused:
                client.completions.create(model="x", prompt="hi")
            assert int(refused.value.response.headers["retry-after"]) > 0
            slow.sendall(body[9:])
            assert slow.makefile("rb").readline().split()[1] == b"200"
        assert client.completions.create(model="x", prompt="hi", max_tokens=1).choices


def test_users_and_judges_may_be_served_here(tiny_config, random_params, tmp_path):
    """A policy that writes anything is a poor user and no judge, and breaks nothing."""
    quiet = dataclasses.replace(tiny_config.rollout, max_turns=2)
    scripted = Environment.from_config(dataclasses.replace(tiny_config, rollout=quiet))
    params = random_params(tiny_config.model, scripted.vocab_size, 0)
    # Long prompts, and few programs: caches in pages have one length.
    with serving(with_rollout(scripted, cache="pages"), params, context=4096, turn=8) as url:
        llm = LLMConfig(model="policy", base_url=url, api_key_env="", max_attempts=1,
                        backoff_seconds=0.0, max_tokens=0)
        user = dataclasses.replace(tiny_config.user, kind="llm", llm=llm)
        judge = dataclasses.replace(tiny_config.judge, kind="llm", llm=llm)
        config = dataclasses.replace(tiny_config, rollout=quiet, user=user, judge=judge)
        env = Environment.from_config(config)
        try:
            env.check_users()
            episodes = [env.episode(task, "test", 0, 0) for task in env.train_tasks[:2]]
            env.engine().run(params, episodes, 1.0)
            trajectories = [episode.trajectory() for episode in episodes]
        finally:
            env.close()
        broken = [t.segments[-1].info for t in trajectories
                  if t.stop_reason == "infrastructure_error"]
        assert not broken
        spoken = [s for t in trajectories for s in t.segments if s.role == "user"]
        assert len(spoken) >= 2 and all(s.text.strip() for s in spoken)
        with Judge(judge, tmp_path, print, None) as asked:
            asked.check()
            verdicts = asked.judge_all(trajectories)
            counts = asked.counts()
        assert verdicts == [None] * 2 and counts["judge/requests"] >= 2
