"""Answers in the words of OpenAI's protocol, whole and in pieces, and metrics in Prometheus's."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from tarl_jax.config.plain import plain
from tarl_jax.serve.requests import Options, ToolCall
from tarl_jax.serve.turns import Answer
from tarl_jax.text.pretrained_tokenizer import PretrainedTokenizer
from tarl_jax.text.tokenizer import Tokenizer

AnyTokenizer = Tokenizer | PretrainedTokenizer
_PREFIX = "tarl_serve_"


def chat_completion(
    answer: Answer, options: Options, name: str, tokenizer: AnyTokenizer
) -> dict[str, Any]:
    """The body that answers a request for a chat completion."""
    message: dict[str, Any] = {"role": "assistant", "content": answer.content or None,
                               "refusal": None}
    if answer.reasoning:
        message["reasoning_content"] = answer.reasoning
    if answer.calls:
        message["tool_calls"] = [_call(call) for call in answer.calls]
    choice: dict[str, Any] = {"index": 0, "message": message, "finish_reason": answer.finish,
                              "logprobs": None}
    if options.log_probs:
        choice["logprobs"] = {"content": [
            {"token": text, "logprob": p, "bytes": list(text.encode()), "top_logprobs": []}
            for text, p in zip(_texts(answer.ids, tokenizer), answer.log_probs, strict=True)
        ]}
    body = _body(options, name, "chatcmpl", "chat.completion")
    if options.token_ids:
        body["prompt_token_ids"] = answer.prompt
        choice["token_ids"] = answer.ids
    return {**body, "choices": [choice], "usage": _usage([answer])}


def completion(
    answers: Sequence[Answer], options: Options, name: str, tokenizer: AnyTokenizer
) -> dict[str, Any]:
    """The body that answers a request for completions."""
    choices = []
    for index, answer in enumerate(answers):
        choice: dict[str, Any] = {"index": index, "text": answer.content,
                                  "finish_reason": answer.finish, "logprobs": None}
        if options.log_probs:
            texts = _texts(answer.ids, tokenizer)
            places = [0]
            for text in texts:
                places.append(places[-1] + len(text))
            choice["logprobs"] = {
                "tokens": texts, "token_logprobs": answer.log_probs, "text_offset": places[:-1],
                "top_logprobs": [
                    {t: p} for t, p in zip(texts, answer.log_probs, strict=True)
                ],
            }
        if options.token_ids:
            choice["token_ids"], choice["prompt_token_ids"] = answer.ids, answer.prompt
        choices.append(choice)
    body = _body(options, name, "cmpl", "text_completion")
    return {**body, "choices": choices, "usage": _usage(answers)}


class Stream(Protocol):
    """What is sent of an answer in pieces: before it, as it grows, and at its end."""

    def begin(self) -> Iterator[dict[str, Any]]: ...

    def more(self, reasoning: str, content: str) -> Iterator[dict[str, Any]]: ...

    def end(self, answer: Answer) -> Iterator[dict[str, Any]]: ...


class ChatStream:
    """Pieces of a chat completion."""

    def __init__(self, options: Options, name: str):
        self._options = options
        self._body = _body(options, name, "chatcmpl", "chat.completion.chunk")
        self._reasoning = self._content = ""

    def begin(self) -> Iterator[dict[str, Any]]:
        yield self._piece({"role": "assistant", "content": ""})

    def more(self, reasoning: str, content: str) -> Iterator[dict[str, Any]]:
        new = reasoning[len(self._reasoning) :]
        if new:
            self._reasoning = reasoning
            yield self._piece({"reasoning_content": new})
        new = content[len(self._content) :]
        if new:
            self._content = content
            yield self._piece({"content": new})

    def end(self, answer: Answer) -> Iterator[dict[str, Any]]:
        yield from self.more(answer.reasoning, answer.content)
        for index, call in enumerate(answer.calls):
            yield self._piece({"tool_calls": [{"index": index, **_call(call)}]})
        yield self._piece({}, answer.finish)
        if self._options.usage:
            yield {**self._body, "choices": [], "usage": _usage([answer])}

    def _piece(self, delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}
        return {**self._body, "choices": [choice]}


class TextStream:
    """Pieces of a completion."""

    def __init__(self, options: Options, name: str):
        self._options = options
        self._body = _body(options, name, "cmpl", "text_completion")
        self._content = ""

    def begin(self) -> Iterator[dict[str, Any]]:
        yield from ()

    def more(self, reasoning: str, content: str) -> Iterator[dict[str, Any]]:
        new = content[len(self._content) :]
        if new:
            self._content = content
            yield self._piece(new)

    def end(self, answer: Answer) -> Iterator[dict[str, Any]]:
        yield from self.more("", answer.content)
        yield self._piece("", answer.finish)
        if self._options.usage:
            yield {**self._body, "choices": [], "usage": _usage([answer])}

    def _piece(self, text: str, finish: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "text": text, "finish_reason": finish, "logprobs": None}
        return {**self._body, "choices": [choice]}


def metrics(values: Mapping[str, float], statuses: Mapping[int, int]) -> str:
    """Prometheus's text format, version 0.0.4."""
    lines = []
    for name, value in values.items():
        kind = "counter" if name.endswith("_total") else "gauge"
        lines += [f"# TYPE {_PREFIX}{name} {kind}", f"{_PREFIX}{name} {value:g}"]
    lines.append(f"# TYPE {_PREFIX}responses_total counter")
    lines += [f'{_PREFIX}responses_total{{status="{status}"}} {count}'
              for status, count in sorted(statuses.items())]
    return "\n".join(lines) + "\n"


def _body(options: Options, name: str, prefix: str, kind: str) -> dict[str, Any]:
    return {"id": f"{prefix}-{uuid.uuid4().hex}", "object": kind, "created": int(time.time()),
            "model": options.model or name, "system_fingerprint": name}


def _call(call: ToolCall) -> dict[str, Any]:
    return {"id": call.id, "type": "function",
            "function": {"name": call.name, "arguments": json.dumps(call.arguments)}}


def _texts(ids: Sequence[int], tokenizer: AnyTokenizer) -> list[str]:
    return [plain(tokenizer.decode([token])) for token in ids]


def _usage(answers: Sequence[Answer]) -> dict[str, Any]:
    prompt, written = sum(len(a.prompt) for a in answers), sum(a.written for a in answers)
    cached = sum(answer.cached for answer in answers)
    return {"prompt_tokens": prompt, "completion_tokens": written,
            "total_tokens": prompt + written, "prompt_tokens_details": {"cached_tokens": cached}}
