"""Requests that anybody may have written: each is read, or refused with a reason."""

import json
import random

import pytest
from hostile import hostile_body

from tarl_jax.rollout.sampling import Sampling
from tarl_jax.serve.requests import Refused, body_of, read_chat, read_completion

DEFAULTS = Sampling(0.7, 5, 0.9, 0.1)
HELLO = [{"role": "user", "content": "hello"}]
TOOL = {"type": "function", "function": {"name": "get", "parameters": {"type": "object"}}}


def chat(**fields):
    return read_chat({"messages": HELLO, **fields}, DEFAULTS, 100)


def test_what_is_not_said_is_the_servers():
    request = chat()
    assert request.options.sampling == DEFAULTS
    assert request.options.seed is None and request.options.limit is None
    assert request.names == () and not request.must_call


def test_sampling_is_read():
    options = chat(temperature=0, top_p=0.5, top_k=-1, min_p=0.2, seed=-1, max_tokens=7,
                   max_completion_tokens=5, stop="x").options
    assert options.sampling == Sampling(0.0, 0, 0.5, 0.2)
    assert options.seed == 2**32 - 1 and options.limit == 5 and options.stop == ("x",)


@pytest.mark.parametrize("choice, names, must", [
    (None, ("get", "put"), False), ("auto", ("get", "put"), False), ("none", (), False),
    ("required", ("get", "put"), True),
    ({"type": "function", "function": {"name": "put"}}, ("put",), True),
])
def test_tool_choice(choice, names, must):
    put = {"type": "function", "function": {"name": "put"}}
    request = chat(tools=[put, TOOL], tool_choice=choice)
    assert (request.names, request.must_call) == (names, must)


def test_messages_of_all_kinds_are_read():
    call = {"id": "c1", "type": "function", "name": "get",
            "function": {"name": "get", "arguments": '{"a": 1.0}'}}
    request = chat(messages=[
        {"role": "developer", "content": [{"type": "text", "text": "be "},
                                          {"type": "text", "text": "good"}]},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "content": "", "tool_call_id": "c1"},
        {"role": "assistant", "content": None, "tool_calls": [
            {"function": {"name": "get", "arguments": "[1"}}]},
        {"role": "user", "content": "\ud800 half"},
    ])
    system, asks, answers, broken, half = request.messages
    assert (system.role, system.content) == ("system", "be good")
    assert asks.calls[0].arguments == {"a": 1.0} and asks.calls[0].id == answers.call_id == "c1"
    assert broken.calls[0].arguments == "[1"
    assert half.content == "\ud800 half"  # made plain where the bytes are read


def test_halves_of_characters_end_at_the_door():
    body = body_of(b'{"messages": [{"role": "user", "content": "\\ud800 half"}]}')
    assert read_chat(body, DEFAULTS, 9).messages[0].content == "\ufffd half"


@pytest.mark.parametrize("fields, reason", [
    ({"messages": []}, "at least one"),
    ({"messages": "hi"}, "should be a list"),
    ({"messages": HELLO * 101}, "at most 100"),
    ({"messages": [{"role": "function", "content": ""}]}, r"messages\[0\].role"),
    ({"messages": [{"role": ["user"], "content": ""}]}, r"messages\[0\].role"),
    ({"messages": [{"role": "user"}]}, "content is missing"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "only parts of type"),
    ({"messages": [{"role": "assistant", "tool_calls": [{}]}]}, "function.name"),
    ({"temperature": True}, "temperature should be a number from 0"),
    ({"temperature": -1}, "temperature"),
    ({"top_p": 1.5}, "top_p should be a number from 0 to 1"),
    ({"seed": 1.5}, "seed should be a whole number"),
    ({"max_tokens": 0}, "at least 1"),
    ({"n": 2}, "n should be 1"),
    ({"best_of": 2}, "best_of should be 1"),
    ({"functions": [{"name": "get"}]}, "functions is not supported here; give tools"),
    ({"function_call": {"name": "get"}}, "give tool_choice"),
    ({"logprobs": True, "top_logprobs": 3}, "top_logprobs is not supported"),
    ({"tool_choice": {"type": "allowed_tools"}, "tools": [TOOL]}, "should be function"),
    ({"stop": [""]}, "none empty"),
    ({"stream": "yes"}, "stream should be true or false"),
    ({"logit_bias": {"1": 2}}, "logit_bias is not supported"),
    ({"frequency_penalty": 0.5}, "frequency_penalty is not supported"),
    ({"response_format": {"type": "json_object"}}, "only text"),
    ({"tools": [TOOL, TOOL]}, "two functions of the name 'get'"),
    ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, r"tools\[0\].function.name"),
    ({"tools": [TOOL] * 129}, "up to 128"),
    ({"tool_choice": "required"}, "there are no tools"),
    ({"tool_choice": {"function": {"name": "nix"}}, "tools": [TOOL]}, "none of the tools"),
    ({"model": 5}, "model should be a text"),
])
def test_refusals_name_what_is_wrong(fields, reason):
    with pytest.raises(Refused, match=reason) as found:
        chat(**fields)
    assert found.value.status == 400


@pytest.mark.parametrize("content, reason", [
    (b"", "not valid JSON"), (b"[1]", "JSON object"), (b"\xff{}", "not valid JSON"),
    (b'{"a": NaN}', "NaN"), (b"[" * 100_000, "inside one another"), (b'{"a": 1e999}', "too large"),
])
def test_bodies_that_are_none(content, reason):
    with pytest.raises(Refused, match=reason):
        body_of(content)


def test_prompts_are_texts_or_ids():
    def prompts(value):
        return read_completion({"prompt": value}, DEFAULTS, 10).prompts

    assert prompts("a") == ("a",) and prompts([1, 2]) == ((1, 2),)
    assert prompts(["a", [3]]) == ("a", (3,))
    for wrong in (None, "", [], [[]], [10], [-1], [True], [1.0], {"a": 1}, [["a"]]):
        with pytest.raises(Refused):
            prompts(wrong)


def test_equal_requests_have_equal_keys():
    assert chat(seed=1).options.key == chat(seed=1, stream=True).options.key
    assert chat(seed=1).options.key != chat(seed=2).options.key


def test_hostile_requests_are_read_or_refused():
    rng = random.Random(0)
    outcomes = set()
    for _ in range(1500):
        content = hostile_body(rng)
        try:
            data = body_of(content)
            request = read_chat(data, DEFAULTS, 100)
            json.dumps([m.content for m in request.messages]).encode()
            outcomes.add("read")
        except Refused as refused:
            assert refused.status == 400 and str(refused)
            outcomes.add("refused")
    assert outcomes == {"read", "refused"}
