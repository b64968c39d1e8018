"""An agent's turn as it is meant: what it thinks, what it says, and which tools it calls.

Reasoning stands between `<think>` and `</think>`, whatever line breaks are around them. A lone
`</think>` ends reasoning that began in the prompt: all before it is thought. A call is

    <tool_call> {"name": …, "arguments": {…}} </tool_call>

on one line or on several; without arguments, or with null, it has none. What stands inside the
strings of a call is neither markup nor reasoning. All else is prose: the message, or, beside a
call, text that nobody hears. What is not plain is refused, and the reason says what is wrong.
"""

from __future__ import annotations

import dataclasses
import json
import re

from tarl_jax.config.plain import loads
from tarl_jax.sandbox.dialogue import Action, Malformed
from tarl_jax.types import Call

SEVERAL = ("refused", "first", "all")  # what becomes of a turn with more calls than one
TOO_LONG = "the turn is too long; keep it short"

_TAG = re.compile(r"</?(?:think|tool_call)>")
_CLOSE = re.compile(r"\s*</tool_call>")
_SPACE = re.compile(r"\s*")
_DECODER = json.JSONDecoder()
_CUT_BEHIND = 4096  # characters
_ONE = "write exactly one <tool_call> block in a turn"
_BLOCK = "write each call as one block, from <tool_call> to </tool_call>"
_NO_JSON = "the tool call is not valid JSON"


@dataclasses.dataclass(frozen=True)
class Written:
    """What stands in an agent's turn.

    Attributes:
      text: all of it, as it was written, without the end token.
      thought: its reasoning.
      message: what it tells the user; empty where it calls a tool or cannot be read.
      calls: the tools that it calls, in order.
      unheard: what else it wrote: text beside a call, or a turn that cannot be read.
      problem: why it is neither a message nor a call; empty where it is.
      behind: where it goes on, behind the reasoning that it begins with; 0: it has none.
      closed: where the last `</think>` of that reasoning ends; 0: it has none.
    """

    text: str
    thought: str
    message: str
    calls: tuple[Call, ...]
    unheard: str
    problem: str
    behind: int
    closed: int

    @property
    def action(self) -> Action:
        if self.problem:
            return Malformed(self.problem)
        return self.message or (self.calls[0] if len(self.calls) == 1 else self.calls)


def read_turn(text: str, several: str = "refused", ended: bool = True) -> Written:
    """Reads a turn. Never raises, whatever stands in it; in linear time.

    Args:
      several: what becomes of a turn with more calls than one: "refused", only the "first" of them
        is made, or "all" are, in order.
      ended: whether it ended by itself, and was not cut off.
    """
    thoughts: list[str] = []
    prose: list[str] = []
    found: list[Call | str] = []  # calls, and what is wrong with others
    place = since = closed = base = 0
    tail = text  # what is behind base, so that json has few lines to count before every fault
    thinking = spoken = False
    while tag := _TAG.search(text, place):
        if thinking and tag[0] != "</think>":
            place = tag.end()
            continue
        if not thinking:
            prose.append(text[place : tag.start()])
            spoken = spoken or bool(prose[-1].strip())
        place = tag.end()
        match tag[0]:
            case "<think>":
                thinking, since = True, place
            case "</think>":
                thoughts.append(text[since : tag.start()].strip())
                if not thinking:
                    prose, found, spoken = [], [], False
                thinking, since = False, place
                closed = closed if found or spoken else place
            case "<tool_call>":
                if place - base > _CUT_BEHIND:
                    base, tail = place, text[place:]
                one, end = _block(tail, place - base)
                place = base + end
                found.append(one)
            case _:
                found.append(_BLOCK)
    rest = text[since:] if thinking else text[place:]
    (thoughts if thinking else prose).append(rest.strip() if thinking else rest)
    said = "".join(prose).strip()
    behind = len(text) - len(text[closed:].lstrip("\r\n")) if closed else 0
    calls, problem = _calls(found, several)
    if not ended:
        problem = TOO_LONG
    elif thinking:
        problem = "close <think> before you act"
    elif not found and not said:
        problem = "the turn is empty; call a tool or answer the user"
    if problem:
        return Written(text, "\n".join(thoughts), "", (), text[behind:] if not thinking else said,
                       problem, behind, closed)
    message, unheard = ("", said) if calls else (said, "")
    return Written(text, "\n".join(thoughts), message, calls, unheard, "", behind, closed)


def _calls(found: list[Call | str], several: str) -> tuple[tuple[Call, ...], str]:
    """(the calls that are made, what is wrong with them)."""
    if several == "first":
        found = found[:1]
    wrong = next((one for one in found if isinstance(one, str)), "")
    if several == "refused" and (len(found) > 1 or wrong == _BLOCK):
        wrong = _ONE
    return tuple(one for one in found if isinstance(one, Call)), wrong


def _block(text: str, begin: int) -> tuple[Call | str, int]:
    """(the call behind a `<tool_call>` or what is wrong with it, where the text goes on)."""
    space = _SPACE.match(text, begin)
    begin = space.end() if space else begin
    try:
        _, end = _DECODER.raw_decode(text, begin)
    except (ValueError, RecursionError):
        end = begin
    if close := _CLOSE.match(text, end):
        return _call(text[begin:end]), close.end()
    tag = _TAG.search(text, begin)
    if tag and tag[0] == "</tool_call>":
        return _NO_JSON, tag.end()
    return _BLOCK, begin


def _call(text: str) -> Call | str:
    """The call that a JSON text is, or what is wrong with it."""
    try:
        data = loads(text)
    except ValueError:
        return _NO_JSON
    if not isinstance(data, dict) or not {"name"} <= set(data) <= {"name", "arguments"}:
        return 'a tool call has the keys "name" and "arguments", no others'
    name, arguments = data["name"], data.get("arguments")
    if not isinstance(name, str) or not isinstance(arguments, dict | None):
        return '"name" is a string and "arguments" an object'
    return Call(name, arguments or {})
