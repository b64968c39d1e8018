"""Dialogues of a file, in the layout of chat APIs, as demonstrations in the run's own layout."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tarl_jax.config import InputError
from tarl_jax.config.plain import loads, read_lines
from tarl_jax.rollout.environment import Environment, shows_all
from tarl_jax.types import Call
from tarl_jax.warm_start.demonstrations import Demonstration


def read_dialogues(path: str | Path, env: Environment) -> list[Demonstration]:
    """One demonstration per line; what the assistant wrote in it is learned.

    A line is {"messages": [{"role", "content", "tool_calls"}, …], "tools": [schemas]}. A dialogue
    without a system message, or without tools, has those of the run. Raises InputError that names
    file and line for what is none, for a turn with several calls, and for a file without any.
    """
    found = [_Reader(env, where).read(line) for where, line in read_lines(Path(path).expanduser())]
    if not found:
        raise InputError(f"{path}: holds no dialogue: give JSON lines with \"messages\"")
    return found


class _Reader:
    """Lays out the messages of one line."""

    def __init__(self, env: Environment, where: str):
        self._env, self._chat, self._where = env, env.chat, where

    def read(self, line: str) -> Demonstration:
        try:
            data = loads(line)
        except ValueError as error:
            raise InputError(f"{self._where}: not valid JSON: {error}") from None
        messages = data.get("messages") if isinstance(data, dict) else None
        self._require(isinstance(messages, list) and bool(messages), 'needs a list "messages"')
        assert isinstance(messages, list)
        for message in messages:
            self._require(isinstance(message, dict) and isinstance(message.get("role"), str),
                          f"a message is an object with a role, not {str(message)[:60]!r}")
        first = messages[0]
        tokens = self._system(first if first["role"] == "system" else {}, data.get("tools"))
        agent = [False] * len(tokens)
        before = ""
        for number, message in enumerate(messages[first["role"] == "system" :], 1):
            role = message["role"]
            if role == "assistant":
                self._require(before in ("user", "tool"),
                              f"message {number}: the assistant answers a user or a tool")
                ids = self._assistant(message, number)
            elif role == "user":
                self._require(before in ("", "assistant"),
                              f"message {number}: a user speaks first, or after the assistant")
                ids = self._chat.user(self._text(message, number))
            else:
                self._require(role == "tool" and before == "assistant",
                              f"message {number}: role {role!r} after {before or 'nothing'!r}: a"
                              " dialogue has users, assistants and, after a call of theirs, tools")
                ids = self._chat.tool(self._text(message, number))
            if role == "assistant":  # what its turns begin with is forced on it
                tokens += self._chat.begin
                agent += [False] * len(self._chat.begin)
            tokens += ids
            agent += [role == "assistant"] * len(ids)
            before = role
        self._require(any(agent), "the assistant says nothing in it")
        nothing = np.zeros(len(tokens), bool)
        return Demonstration(np.array(tokens, np.int32), np.array(agent), nothing)

    def _system(self, message: Mapping[str, Any], tools: Any) -> list[int]:
        if not message and tools is None:
            return list(self._env.system[1])
        self._require(tools is None or isinstance(tools, list), '"tools" is a list of schemas')
        text = self._text(message, 0) if message else self._env.system[0]
        if tools is None and shows_all(self._env.config):
            tools = self._env.domain.schemas
        return self._chat.system(text, tools or [])

    def _assistant(self, message: Mapping[str, Any], number: int) -> list[int]:
        calls = message.get("tool_calls") or []
        if not calls:
            return self._chat.agent(self._text(message, number))
        self._require(isinstance(calls, list) and len(calls) == 1,
                      f"message {number}: has {len(calls)} tool calls: an agent's turn is one")
        self._require(not (message.get("content") or "").strip(), f"message {number}: says"
                      " something beside its call: an agent's turn is one or the other")
        call = calls[0] if isinstance(calls[0], dict) else {}
        of = call.get("function", call)
        name, given = (of.get("name"), of.get("arguments")) if isinstance(of, dict) else ("", None)
        try:
            arguments = loads(given) if isinstance(given, str) else given
        except ValueError:
            arguments = None
        self._require(isinstance(name, str) and bool(name) and isinstance(arguments, dict),
                      f"message {number}: a call has a name and arguments (an object, or its JSON),"
                      f" not {json.dumps(of)[:60]}")
        assert isinstance(name, str) and isinstance(arguments, dict)
        return self._chat.agent(Call(name, arguments))

    def _text(self, message: Mapping[str, Any], number: int) -> str:
        content = message.get("content")
        self._require(isinstance(content, str), f"message {number}: its content is"
                      f" {type(content).__name__}, not text")
        assert isinstance(content, str)
        return content

    def _require(self, ok: bool, problem: str) -> None:
        if not ok:
            raise InputError(f"{self._where}: {problem}")
