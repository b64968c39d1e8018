"""A real server process, asked by the openai client, by curl, and byte by byte."""

import concurrent.futures
import dataclasses
import gzip
import json
import os
import random
import select
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path

import jax
import numpy as np
import openai
import pytest
from hostile import hostile_body
from serving import Played

from tarl_jax.config import from_config_dict
from tarl_jax.config.presets import sized
from tarl_jax.models import decoder
from tarl_jax.serve.policy import load_policy
from tarl_jax.training.parts import Parts

ROOT = Path(__file__).parents[2]
WIRE = ROOT.parent / "shared" / "tau2" / "wire"
CONTEXT, TURN = 1024, 48
TOOLS = [{"type": "function", "function": {
    "name": name, "parameters": {"type": "object", "properties": {"id": {"type": "string"}}},
}} for name in ("cancel_pending_order", "find_user_id_by_email",
                                                  "get_order_details")]
NAMES = {tool["function"]["name"] for tool in TOOLS}


class Process:
    """The server in a process of its own, on a free port."""

    def __init__(self, *more, **environment):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tarl_jax.serve", "--config=configs/grpo_tarl.py", "--port=0",
             "--lazy=True", "--slots=8", f"--context={CONTEXT}", *more],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env={**os.environ, **environment},
        )
        seen = []
        while not seen or not seen[-1].startswith("serving"):
            seen.append(self.process.stdout.readline())
            assert seen[-1], "".join(seen)
        self.url = seen[-1].split()[-1]
        self.port = int(self.url.split(":")[2].split("/")[0])
        self.root = f"http://127.0.0.1:{self.port}"

    def client(self, **more):
        return openai.OpenAI(base_url=self.url, api_key="none", max_retries=0, timeout=120, **more)

    def post(self, path, content, **headers):
        """(status, body) of a request of any bytes."""
        request = urllib.request.Request(self.root + path, content, {
            "content-type": "application/json", **headers})
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def metrics(self, token=""):
        request = urllib.request.Request(f"{self.root}/metrics", headers={
            "authorization": f"Bearer {token}"})
        with urllib.request.urlopen(request) as answer:
            lines = answer.read().decode().splitlines()
        return {k.removeprefix("tarl_serve_"): float(v) for k, v in
                (line.split() for line in lines if not line.startswith("#"))}

    def close(self):
        self.process.kill()
        self.process.stdout.close()
        self.process.wait()


@pytest.fixture(scope="module")
def server():
    process = Process()
    yield process
    assert process.process.poll() is None, process.process.stdout.read()
    process.close()


def ask(server, messages, **more):
    extra = {"return_token_ids": True, **more.pop("extra_body", {})}
    return server.client().chat.completions.create(
        model="policy", messages=messages, extra_body=extra, **more)


def usable(answer):
    """What a harness can go on with; returns it."""
    message, finish = answer.choices[0].message, answer.choices[0].finish_reason
    for call in message.tool_calls or ():
        assert isinstance(json.loads(call.function.arguments), dict) and call.id
    assert message.tool_calls or message.content
    assert finish in ("stop", "length", "tool_calls")
    assert (finish == "tool_calls") == bool(message.tool_calls)
    (message.content or "").encode()
    return message


def user(text):
    return {"role": "user", "content": text}


def following(message, text="go on"):
    """What a harness sends behind an answer of ours."""
    sent = message.model_dump(exclude_none=True)
    if message.tool_calls:
        return [sent, *({"role": "tool", "tool_call_id": c.id, "content": text}
                        for c in message.tool_calls)]
    return [sent, user(text)]


@pytest.fixture(scope="module")
def direct():
    """(environment, parameters, engine with the grammar of the tools): the server's policy."""
    config = from_config_dict(sized(""))
    rollout = dataclasses.replace(config.rollout, slots=8, max_episode_tokens=CONTEXT)
    _, env, params = load_policy(dataclasses.replace(config, rollout=rollout), Parts())
    from tarl_jax.parallel.mesh import rollout_mesh
    from tarl_jax.rollout.engine import Engine
    from tarl_jax.rollout.grammar import build

    assert not env.chat.begin
    grammar = build(env.tokenizer, NAMES, env.vocab_size)
    return env, params, Engine(env.config.model, env.config.rollout, env.tokenizer.stop_ids,
                               rollout_mesh(env.config.mesh), grammar)


@pytest.mark.parametrize("temperature", [0, 1.0])
def test_a_served_conversation_is_the_one_that_the_engine_plays(server, direct, temperature):
    env, params, engine = direct
    played = Played(env, 5, seed=7)
    engine.run(params, [played], temperature)
    messages, before = [user("hello")], 0
    for ids, log_probs in played.answers:
        answer = ask(server, messages, tools=TOOLS, seed=7, temperature=temperature, logprobs=True)
        choice = answer.choices[0]
        assert choice.token_ids == ids
        found = [token.logprob for token in choice.logprobs.content]
        np.testing.assert_allclose(found, log_probs, atol=1e-4)
        fresh = answer.usage.prompt_tokens - answer.usage.prompt_tokens_details.cached_tokens
        assert not before or fresh <= answer.usage.prompt_tokens - before + 60
        before = answer.usage.total_tokens
        messages += following(usable(answer))


def test_tool_choice_is_kept_by_a_policy_that_writes_anything(server):
    for number in range(4):
        more = {"seed": number, "temperature": 1.5}
        message = usable(ask(server, [user("hi")], tools=TOOLS, tool_choice="required", **more))
        assert {c.function.name for c in message.tool_calls} <= NAMES
        named = {"type": "function", "function": {"name": "get_order_details"}}
        message = usable(ask(server, [user("hi")], tools=TOOLS, tool_choice=named, **more))
        assert [c.function.name for c in message.tool_calls] == ["get_order_details"]
        for none in ({"tools": TOOLS, "tool_choice": "none"}, {}):
            message = usable(ask(server, [user("hi")], **none, **more))
            assert not message.tool_calls and "<tool_call>" not in message.content


def test_limits_and_stops(server):
    more = {"seed": 3, "temperature": 1.0}
    answer = ask(server, [user("hi")], max_tokens=1, **more)
    assert answer.choices[0].finish_reason == "length" and usable(answer)
    assert len(answer.choices[0].token_ids) == 1
    text = server.client().completions.create(
        model="x", prompt="hello", max_tokens=20, **more).choices[0]
    assert text.finish_reason in ("length", "stop")
    stop = text.text[4:6]
    cut = server.client().completions.create(
        model="x", prompt="hello", max_tokens=20, stop=[stop], **more).choices[0]
    assert cut.text == text.text[: text.text.index(stop)].strip() and cut.finish_reason == "stop"


def test_completions_have_token_ids_and_log_probs(server, direct):
    env, params, _ = direct
    ids = env.chat.user("hello")
    body = {"prompt": [ids, "hello"], "max_tokens": 5, "seed": 1, "temperature": 0, "logprobs": 1,
            "return_token_ids": True}
    status, found = server.post("/v1/completions", json.dumps(body).encode())
    assert status == 200 and [c["index"] for c in found["choices"]] == [0, 1]
    choice = found["choices"][0]
    assert choice["prompt_token_ids"] == ids
    whole = np.array([ids + choice["token_ids"]])
    hidden = decoder.hidden_states(params, env.config.model, whole)[0, len(ids) - 1 : -1]
    expected = np.asarray(jax.nn.log_softmax(decoder.logits(params, hidden)))
    assert choice["token_ids"] == expected.argmax(axis=1).tolist()
    np.testing.assert_allclose(choice["logprobs"]["token_logprobs"], expected.max(axis=1),
                               atol=1e-4)


@pytest.mark.parametrize("tools", [(), TOOLS])
def test_a_stream_adds_up_to_the_answer(server, tools):
    more = {"seed": 11, "temperature": 1.0, "max_tokens": 20}
    if tools:
        more |= {"tools": tools, "tool_choice": "required"}
    whole = usable(ask(server, [user("stream")], **more))
    pieces = list(server.client().chat.completions.create(
        model="policy", messages=[user("stream")], stream=True,
        stream_options={"include_usage": True}, **more))
    deltas = [p.choices[0].delta for p in pieces if p.choices]
    assert "".join(d.content or "" for d in deltas) == (whole.content or "")
    calls = [c.function for d in deltas for c in d.tool_calls or ()]
    assert [(c.name, c.arguments) for c in calls] == [
        (c.function.name, c.function.arguments) for c in whole.tool_calls or ()]
    assert pieces[-1].usage.completion_tokens > 0 and pieces[-2].choices[0].finish_reason


def test_conversations_side_by_side_are_not_mixed_up(server):
    """Each carries a mark; each is what it is alone, and a turn reads no more than is new."""
    def play(mark, turns=4):
        messages, said = [user(f"my mark is {mark}")], []
        for _ in range(turns):
            answer = ask(server, messages, tools=TOOLS, seed=mark, temperature=1.0)
            said.append((answer.choices[0].token_ids, answer.prompt_token_ids))
            messages += following(usable(answer), f"mark {mark}")
        return said

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        together = list(pool.map(play, range(8)))
    for mark in (0, 5):
        assert play(mark) == together[mark]
    prompts = {tuple(said[-1][1]) for said in together}
    assert len(prompts) == 8


def test_a_full_context_gets_a_closing_message(server):
    long = "a b c d e f " * 400
    answer = ask(server, [user(long)], tools=TOOLS)
    assert "too long" in usable(answer).content and answer.choices[0].finish_reason == "length"
    messages, seen = [user("hello")], []
    for _ in range(40):
        answer = ask(server, messages, seed=1, temperature=1.0)
        seen.append(usable(answer).content)
        if "too long" in seen[-1]:
            break
        messages += following(answer.choices[0].message, "1 2 3 4 5 6 7 8 9 10 11 12 " * 2)
    assert "too long" in seen[-1] and len(seen) > 2


@pytest.mark.parametrize("path", sorted(WIRE.glob("*.jsonl.gz")) or [None], ids=str)
def test_recorded_exchanges_get_usable_answers(server, path):
    if path is None:
        pytest.skip(f"{WIRE} is not there")
    for line in gzip.decompress(path.read_bytes()).splitlines():
        request = json.loads(line)["request"]
        status, found = server.post("/v1/chat/completions", json.dumps(request).encode())
        assert status == 200, found
        usable(openai.types.chat.ChatCompletion.model_validate(found))


def test_the_same_request_again_joins_the_running_answer(server):
    """A client that gives up and asks again, as litellm does, waits for the first answer."""
    body = json.dumps({"messages": [user("join " * 30)], "temperature": 1.0, "max_tokens": TURN,
                       "tools": TOOLS}).encode()
    before = server.metrics()["joined_total"]
    for _ in range(50):  # until the client goes while its answer is being written
        with socket.create_connection(("127.0.0.1", server.port)) as gone:
            gone.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: "
                         + str(len(body)).encode() + b"\r\n\r\n" + body)
            while server.metrics()["requests_open"] < 2 and gone not in select.select(
                    [gone], [], [], 0)[0]:
                pass
        while server.metrics()["requests_open"] > 1:
            pass
        status, found = server.post("/v1/chat/completions", body)
        assert status == 200 and usable(openai.types.chat.ChatCompletion.model_validate(found))
        if server.metrics()["joined_total"] > before:
            break
    assert server.metrics()["joined_total"] == before + 1
    # Two clients that send the same words are two conversations.
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        two = list(pool.map(lambda _: server.post("/v1/chat/completions", body), range(2)))
    assert server.metrics()["joined_total"] == before + 1
    assert all(status == 200 for status, _ in two)


@pytest.mark.filterwarnings("ignore")  # its own
def test_litellm_as_the_client(server, monkeypatch):
    """As tau2-bench's harness asks: its messages go back as it keeps them."""
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    litellm = pytest.importorskip("litellm", reason="litellm is not installed")
    how = {"model": "openai/policy", "api_base": server.url, "api_key": "none", "tools": TOOLS,
           "tool_choice": "auto", "temperature": 0.7, "num_retries": 2}
    messages, cached = [{"role": "system", "content": "Help."}, user("hello litellm")], []
    for turn in range(4):
        answer = litellm.completion(messages=messages, seed=turn, **how)
        messages += following(usable(answer))
        cached.append(answer.usage.prompt_tokens_details.cached_tokens)
    assert cached[0] % 16 == 0 and cached[1:] == sorted(cached[1:]) and cached[1] > cached[0]
    whole = litellm.completion(messages=messages, seed=5, **how)
    pieces = list(litellm.completion(messages=messages, seed=5, stream=True, **how))
    usable(whole)
    built = litellm.stream_chunk_builder(pieces, messages=messages)
    assert (usable(built).content or "") == (whole.choices[0].message.content or "")
    with pytest.raises(litellm.BadRequestError, match="tool_choice"):
        litellm.completion(messages=messages, **{**how, "tool_choice": {
            "type": "function", "function": {"name": "no_such_tool"}}})


def test_curl_and_the_other_paths(server):
    def curl(path, *more):
        command = ["curl", "-s", "-w", "\n%{http_code}", server.root + path, *more]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        content, _, status = text.rpartition("\n")
        return int(status), content

    status, content = curl("/v1/chat/completions", "-d", json.dumps({"messages": [user("hi")]}))
    assert status == 200 and json.loads(content)["object"] == "chat.completion"
    models = server.client().models.list().data
    assert [m.id for m in models] == ["grpo_tarl"]
    assert curl("/health")[0] == 200 and "# TYPE tarl_serve_requests_open" in curl("/metrics")[1]
    assert curl("/v1/nothing")[0] == 404 and curl("/v1/chat/completions")[0] == 405
    assert curl("/v1/chat/completions", "-d", "{")[0] == 400
    packed = curl("/v1/chat/completions", "-H", "content-encoding: gzip", "-d", "x")
    assert packed[0] == 415 and "content-encoding" in packed[1]
    assert curl("/v1/models/")[1] == curl("/v1/models")[1]


def test_hostile_requests_get_a_reason(server):
    rng = random.Random(5)
    bodies = [hostile_body(rng) for _ in range(60)]
    paths = ["/v1/chat/completions", "/v1/completions"]

    def post(number):
        content = bodies[number]
        try:
            stream = b'"stream": true' in content
            return 200 if stream else server.post(paths[number % 2], content)
        except json.JSONDecodeError:
            return "a stream"

    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        for found in pool.map(post, range(len(bodies))):
            if isinstance(found, tuple) and found[0] != 200:
                assert 400 <= found[0] < 500 and found[1]["error"]["message"]
    assert server.post("/v1/chat/completions", b"x" * (9 << 20))[0] == 413
    assert server.metrics()["engine_failures_total"] == 0
    usable(ask(server, [user("still there?")]))


def test_a_token_is_asked_for_and_an_open_request_survives_the_end():
    refused = subprocess.run(
        [sys.executable, "-m", "tarl_jax.serve", "--config=configs/grpo_tarl.py:tiny",
         "--host=0.0.0.0"], cwd=ROOT, capture_output=True, text=True,
        env={k: v for k, v in os.environ.items() if k != "TARL_SERVE_TOKEN"})
    assert refused.returncode and "TARL_SERVE_TOKEN" in refused.stderr + refused.stdout
    server = Process(TARL_SERVE_TOKEN="s3cret")
    try:
        content = json.dumps({"messages": [user("hi")], "max_tokens": TURN}).encode()
        assert server.post("/v1/chat/completions", content)[0] == 401
        assert server.post("/v1/chat/completions", content, authorization="Bearer x")[0] == 401
        found = []
        asking = threading.Thread(target=lambda: found.append(
            server.post("/v1/chat/completions", content, authorization="Bearer s3cret")))
        asking.start()
        while server.metrics("s3cret")["requests_open"] < 2 and not found:
            pass  # the first request compiles: it is under way for long
        server.process.send_signal(signal.SIGTERM)
        asking.join(120)
        assert found and found[0][0] == 200, found
        assert server.process.wait(60) is not None
    finally:
        server.close()
