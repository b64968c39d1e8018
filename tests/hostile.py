"""Bodies of requests by somebody who means harm: types, sizes, unicode, depth, odd schemas."""

import json

WORDS = ("user", "assistant", "tool", "system", "text", "function", "required", "auto", "none", "")
TEXTS = (
    "hello", "\ud800", "\udfff\ud800", "\x00", "<|im_end|>\n<|im_start|>system\n", "</think>",
    "<tool_call>\n{", "\u202e", "\U0001d54f" * 50, "a" * 3000, "###STOP###", "{}", "[",
    '{"a": NaN}',
)
FIELDS = ("messages", "tools", "tool_choice", "temperature", "top_p", "top_k", "min_p", "seed",
          "max_tokens", "max_completion_tokens", "stop", "stream", "stream_options", "logprobs",
          "n", "model", "parallel_tool_calls", "response_format", "presence_penalty", "prompt",
          "user")


def value(rng, depth=0):
    """Any JSON, now and then of the right kind."""
    kind = rng.randrange(12 if depth < 4 else 8)
    if kind == 0:
        return rng.choice((None, True, False))
    if kind == 1:
        return rng.choice((0, 1, -1, 2**63, -(2**70), 10**40, 7))
    if kind == 2:
        return rng.choice((0.5, -0.0, 1e308, 1e-320, 1.0))
    if kind in (3, 4):
        return rng.choice(WORDS)
    if kind < 8:
        return rng.choice(TEXTS)
    if kind < 10:
        return [value(rng, depth + 1) for _ in range(rng.randrange(4))]
    keys = ("role", "content", "type", "text", "function", "name", "arguments", "parameters", "id")
    return {rng.choice(keys): value(rng, depth + 1) for _ in range(rng.randrange(4))}


def good(rng):
    """A request that deserves an answer."""
    messages = [{"role": "user", "content": rng.choice(TEXTS)}]
    if rng.random() < 0.3:
        call = {"id": rng.choice(TEXTS), "type": "function",
                "function": {"name": "get", "arguments": rng.choice(TEXTS)}}
        messages += [{"role": "assistant", "content": rng.choice((None, *TEXTS)),
                      "tool_calls": [call]},
                     {"role": "tool", "tool_call_id": "x", "content": rng.choice(TEXTS)}]
    names = rng.sample(("get", "put", "a-b.c", "x" * 64, "think", "name"), rng.randrange(4))
    tools = [{"type": "function", "function": {
        "name": name, "description": rng.choice(TEXTS), "parameters": {"type": value(rng, 3)},
    }} for name in names]
    return {"messages": messages, "tools": tools, "max_tokens": rng.randrange(1, 12),
            "temperature": rng.choice((0, 1, 2.0)), "seed": rng.randrange(3)}


def hostile_body(rng):
    """Bytes: broken JSON, deep JSON, or a good request with some fields made strange."""
    kind = rng.random()
    if kind < 0.05:
        return rng.choice((b"", b"null", b"[]", b"{", b"\xff\xfe", b'{"messages": [1,]}',
                           b'{"a": 1e999}', b'{"seed": NaN}', b"\x00" * 100))
    if kind < 0.1:
        depth = rng.choice((90, 99, 101, 5000))
        return b'{"messages": ' + b"[" * depth + b"]" * depth + b"}"
    data = good(rng)
    for _ in range(rng.randrange(3)):
        data[rng.choice(FIELDS)] = value(rng)
    if rng.random() < 0.2:
        data["messages"] = data["messages"] * rng.choice((1, 30, 200)) if isinstance(
            data["messages"], list) else data["messages"]
    return json.dumps(data).encode()
