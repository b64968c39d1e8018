"""What a client may ask for, read from JSON that anybody may have written.

The shapes are those of OpenAI's chat completions and completions. Fields that are not known are
passed over; a known one with a wrong value is refused by name.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from tarl_jax.config.plain import loads
from tarl_jax.rollout.sampling import Sampling

MAX_TOOLS = 128
MAX_STOPS = 16
MAX_PROMPTS = 64  # of one request for completions
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant",
          "tool": "tool"}


class Refused(Exception):
    """A request that gets no answer: the HTTP status, and why in words."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


@dataclasses.dataclass(frozen=True)
class ToolCall:
    """A call in a message of the assistant; `arguments`: an object, or text that is none."""

    id: str
    name: str
    arguments: Mapping[str, Any] | str


@dataclasses.dataclass(frozen=True)
class Message:
    """role: "system", "user", "assistant" or "tool"; call_id: of the call that a tool answers."""

    role: str
    content: str
    calls: tuple[ToolCall, ...] = ()
    call_id: str = ""


@dataclasses.dataclass(frozen=True)
class Options:
    """What both kinds of requests have.

    Attributes:
      model: as the client names it; any will do.
      seed: of the sampling, 32 bits; None: one is drawn.
      limit: tokens of the answer, at most; None: the server's.
      key: equal for equal requests.
    """

    model: str
    sampling: Sampling
    seed: int | None
    limit: int | None
    stop: tuple[str, ...]
    stream: bool
    usage: bool
    log_probs: bool
    token_ids: bool
    key: str


@dataclasses.dataclass(frozen=True)
class ChatRequest:
    """A conversation to go on with.

    Attributes:
      tools: function schemas, as the client gives them.
      names: those that may be called now.
      must_call: whether the answer has to be a call.
      parallel: whether it may have several.
    """

    options: Options
    messages: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...]
    names: tuple[str, ...]
    must_call: bool
    parallel: bool = True


@dataclasses.dataclass(frozen=True)
class CompletionRequest:
    """Prompts to go on with, each a text or token ids."""

    options: Options
    prompts: tuple[str | tuple[int, ...], ...]


def body_of(content: bytes) -> dict[str, Any]:
    """The JSON object of a request. Raises Refused."""
    try:
        data = loads(content)
    except ValueError as error:
        raise Refused(400, f"the body is not valid JSON: {error}") from None
    if not isinstance(data, dict):
        raise Refused(400, "the body should be a JSON object")
    return data


def read_chat(data: Mapping[str, Any], defaults: Sampling, max_messages: int) -> ChatRequest:
    """A request for a chat completion. Raises Refused."""
    options = _options(data, defaults)
    tools = _tools(data)
    names, must_call = _choice(data.get("tool_choice"), [t["function"]["name"] for t in tools])
    parallel = _optional(data, "parallel_tool_calls", bool, True)
    _text_alone(data)
    found = data.get("messages")
    if not isinstance(found, list) or not found:
        raise Refused(400, "messages should be a list with at least one message")
    if len(found) > max_messages:
        raise Refused(400, f"messages has {len(found)} entries; at most {max_messages} are taken")
    messages = tuple(_message(m, f"messages[{i}]") for i, m in enumerate(found))
    return ChatRequest(options, messages, tools, names, must_call, parallel)


def read_completion(
    data: Mapping[str, Any], defaults: Sampling, vocab_size: int
) -> CompletionRequest:
    """A request for completions. Raises Refused."""
    for name in ("echo", "suffix"):
        if data.get(name):
            raise Refused(400, f"{name} is not supported here")
    prompt = data.get("prompt")
    many = isinstance(prompt, list) and not all(isinstance(t, int) for t in prompt)
    found = prompt if isinstance(prompt, list) and many else [prompt]
    if len(found) > MAX_PROMPTS:
        raise Refused(400, f"prompt has {len(found)} entries; at most {MAX_PROMPTS} are taken")
    prompts = tuple(_prompt(p, vocab_size) for p in found)
    options = _options(data, defaults)
    if options.limit is None:
        options = dataclasses.replace(options, limit=16)  # OpenAI's
    return CompletionRequest(options, prompts)


def _prompt(value: Any, vocab_size: int) -> str | tuple[int, ...]:
    if isinstance(value, str) and value:
        return value
    whole = isinstance(value, list) and value and all(type(t) is int for t in value)
    if not whole:
        raise Refused(400, "prompt should be a text or a list of token ids, or a list of such, and"
                           " not empty")
    wrong = next((t for t in value if not 0 <= t < vocab_size), None)
    if wrong is not None:
        raise Refused(400, f"prompt: {wrong} is no token id; there are {vocab_size}")
    return tuple(value)


def _options(data: Mapping[str, Any], defaults: Sampling) -> Options:
    sampling = Sampling(
        _number(data, "temperature", defaults.temperature, 0, 100),
        int(_number(data, "top_k", defaults.top_k, -1, 2**31 - 1)),
        # The likeliest token always stays, so 0 is as good as a little.
        max(_number(data, "top_p", defaults.top_p, 0, 1), 1e-6),
        _number(data, "min_p", defaults.min_p, 0, 1),
    )
    if sampling.top_k < 0:
        sampling = dataclasses.replace(sampling, top_k=0)
    for name in ("presence_penalty", "frequency_penalty"):
        if _number(data, name, 0.0, -2, 2):
            raise Refused(400, f"{name} is not supported here; leave it out, or 0")
    if data.get("logit_bias"):
        raise Refused(400, "logit_bias is not supported here; leave it out")
    for name in ("n", "best_of"):
        if _optional(data, name, int, 1) != 1:
            raise Refused(400, f"{name} should be 1; send further requests for further answers")
    for name, instead in (("functions", "tools"), ("function_call", "tool_choice")):
        if data.get(name):
            raise Refused(400, f"{name} is not supported here; give {instead}")
    limits = [_optional(data, name, int, None) for name in ("max_tokens", "max_completion_tokens")]
    limit = min((x for x in limits if x is not None), default=None)
    if limit is not None and limit < 1:
        raise Refused(400, f"max_tokens = {limit}: should be at least 1")
    seed = _optional(data, "seed", int, None)
    stream = _optional(data, "stream", bool, False)
    more = _optional(data, "stream_options", dict, {})
    log_probs = data.get("logprobs")
    if not (log_probs is None or isinstance(log_probs, bool | int)):
        raise Refused(400, "logprobs should be true or false, or a number")
    if _number(data, "top_logprobs", 0, 0, 20):
        raise Refused(400, "top_logprobs is not supported here; logprobs gives the sampled tokens'")
    return Options(
        model=_optional(data, "model", str, ""), sampling=sampling,
        seed=None if seed is None else seed % 2**32, limit=limit, stop=_stops(data.get("stop")),
        stream=stream, usage=bool(more.get("include_usage")),
        log_probs=log_probs is not None and log_probs is not False,
        token_ids=_optional(data, "return_token_ids", bool, False), key=_digest(data),
    )


def _stops(value: Any) -> tuple[str, ...]:
    found = [] if value is None else [value] if isinstance(value, str) else value
    fine = isinstance(found, list) and len(found) <= MAX_STOPS
    if not fine or not all(isinstance(s, str) and s for s in found):
        raise Refused(400, f"stop should be a text or a list of up to {MAX_STOPS}, none empty")
    return tuple(found)


def _message(value: Any, where: str) -> Message:
    if not isinstance(value, dict):
        raise Refused(400, f"{where} should be an object")
    said = value.get("role")
    role = _ROLES.get(said) if isinstance(said, str) else None
    if role is None:
        raise Refused(400, f"{where}.role should be one of {', '.join(_ROLES)}")
    calls: tuple[ToolCall, ...] = ()
    if role == "assistant":
        found = value.get("tool_calls") or []
        if not isinstance(found, list) or len(found) > MAX_TOOLS:
            raise Refused(400, f"{where}.tool_calls should be a list of up to {MAX_TOOLS}")
        calls = tuple(_call(c, f"{where}.tool_calls[{i}]") for i, c in enumerate(found))
    content = value.get("content")
    if content is None and role != "assistant":
        raise Refused(400, f"{where}.content is missing")
    call_id = value.get("tool_call_id")
    if not isinstance(call_id, str | None):
        raise Refused(400, f"{where}.tool_call_id should be a text")
    return Message(role, _content(content, where), calls, call_id or "")


def _content(value: Any, where: str) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    if not isinstance(value, list):
        raise Refused(400, f"{where}.content should be a text or a list of parts")
    texts = []
    for part in value:
        if not isinstance(part, dict) or part.get("type") != "text":
            raise Refused(400, f"{where}.content: only parts of type \"text\" are taken")
        if not isinstance(part.get("text"), str):
            raise Refused(400, f"{where}.content: a part has no text")
        texts.append(part["text"])
    return "".join(texts)


def _call(value: Any, where: str) -> ToolCall:
    function = value.get("function") if isinstance(value, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise Refused(400, f"{where}.function.name should be a text")
    arguments = function.get("arguments", "{}")
    if isinstance(arguments, str):
        try:
            read = loads(arguments or "{}")
        except ValueError:
            read = None
        arguments = read if isinstance(read, dict) else arguments
    if not isinstance(arguments, dict | str):
        raise Refused(400, f"{where}.function.arguments should be JSON text of an object")
    call_id = value.get("id")
    return ToolCall(call_id if isinstance(call_id, str) else "", function["name"], arguments)


def _tools(data: Mapping[str, Any]) -> tuple[dict[str, Any], ...]:
    found = data.get("tools") or []
    if not isinstance(found, list) or len(found) > MAX_TOOLS:
        raise Refused(400, f"tools should be a list of up to {MAX_TOOLS}")
    names: list[str] = []
    for i, tool in enumerate(found):
        function = tool.get("function") if isinstance(tool, dict) else None
        if not isinstance(function, dict) or tool.get("type", "function") != "function":
            raise Refused(400, f"tools[{i}] should have the type \"function\" and a function")
        name = function.get("name")
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise Refused(400, f"tools[{i}].function.name should be of 1 to 64 letters, digits, _,"
                               " - and .")
        if not isinstance(function.get("parameters"), dict | None):
            raise Refused(400, f"tools[{i}].function.parameters should be an object")
        if name in names:
            raise Refused(400, f"tools has two functions of the name {name!r}")
        names.append(name)
    return tuple(found)


def _choice(value: Any, names: Sequence[str]) -> tuple[tuple[str, ...], bool]:
    """(what may be called, whether something must be)."""
    if isinstance(value, dict):
        if value.get("type", "function") != "function":
            kind = str(value["type"])[:80]
            raise Refused(400, f"tool_choice.type = {kind!r}: should be function")
        function = value.get("function")
        name = function.get("name") if isinstance(function, dict) else None
        if not isinstance(name, str) or name not in names:
            raise Refused(400, f"tool_choice names {str(name)[:80]!r}, which is none of the tools")
        return (name,), True
    if value not in (None, "auto", "none", "required"):
        raise Refused(400, "tool_choice should be auto, none, required, or name a function")
    if value == "required" and not names:
        raise Refused(400, "tool_choice is required, and there are no tools")
    return () if value == "none" else tuple(sorted(names)), value == "required"


def _text_alone(data: Mapping[str, Any]) -> None:
    kind = data.get("response_format")
    if kind is not None and not (isinstance(kind, dict) and kind.get("type") == "text"):
        raise Refused(400, "response_format: only text is written here; leave it out")
    modalities = data.get("modalities")
    if modalities not in (None, ["text"]):
        raise Refused(400, "modalities: only text is written here; leave it out")


def _optional(data: Mapping[str, Any], name: str, kind: type, default: Any) -> Any:
    value = data.get(name)
    if value is None:
        return default
    if type(value) is not kind:
        words = {int: "a whole number", bool: "true or false", str: "a text", dict: "an object"}
        raise Refused(400, f"{name} should be {words[kind]}")
    return value


def _number(data: Mapping[str, Any], name: str, default: float, low: float, high: float) -> float:
    value = data.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise Refused(400, f"{name} should be a number from {low} to {high}")
    return float(value)


def _digest(data: Mapping[str, Any]) -> str:
    kept = {k: v for k, v in data.items() if k not in ("stream", "stream_options", "user")}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()
