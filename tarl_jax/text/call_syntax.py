"""What an agent may write, byte by byte: every turn whose tool call, if it has one, can be read.

A deterministic automaton over the UTF-8 bytes of a turn, without its end token. It follows
`Chat.read`: text and reasoning are free, and a call is one block

    <tool_call>\\n{"name": "<known tool>", "arguments": {…}}\\n</tool_call>

behind which nothing more may stand. (`Chat.read` takes more: a call on one line, without arguments,
or with markup in its strings.) Between the parts of the JSON runs of white space are
bounded, and so are nesting and the digits of a number, so that the automaton is finite and every
number is one that `json` reads as finite. Strings hold any valid UTF-8 and any escape, but none of
the markup by which `Chat.read` finds calls and reasoning.
"""

from __future__ import annotations

import functools
import json
from typing import Any

import numpy as np

from tarl_jax.config import InputError

MAX_DEPTH = 3  # objects and arrays inside one another, the arguments themselves counted
MAX_SPACES = 2  # characters of white space between two parts of the JSON
MAX_DIGITS = 19  # before a number's point; any 64-bit integer fits
MAX_EXPONENT_DIGITS = 2

OPEN, CLOSE = "<tool_call>", "</tool_call>"
_THINK, _THOUGHT = "<think>", "</think>"
_MARKUP = (OPEN, CLOSE, _THINK)
_SPACE = " \t\n\r"
_WORDS = ("true", "false", "null")

State = tuple[Any, ...]  # a kind, then what that kind has to remember
START: State = ("text", "")
DONE: State = ("done",)
_FREE_KINDS = ("text", "thought")


def is_free(state: State) -> bool:
    """Whether no call has begun, so that the turn may end here."""
    return state[0] in _FREE_KINDS


@functools.lru_cache(maxsize=8)
def automaton(tool_names: tuple[str, ...]) -> tuple[tuple[State, ...], np.ndarray]:
    """The states, START first, and int32 [states, 256]: which follows on a byte, or -1.

    Without tools no call may begin. Raises ValueError if a name cannot stand in a call.
    """
    layout = _layout(tool_names)
    states, number = [START], {START: 0}
    rows = []
    for state in states:  # grows meanwhile
        row = []
        for byte in range(256):
            after = _step(layout, state, chr(byte))
            if after is not None and after not in number:
                number[after] = len(states)
                states.append(after)
            row.append(-1 if after is None else number[after])
        rows.append(row)
    return tuple(states), np.array(rows, np.int32)


_NAMES = 3  # the part of the layout that names the tool
Layout = tuple[tuple[str, ...], ...]  # parts of the call in order, each one of some texts


def _layout(tool_names: tuple[str, ...]) -> Layout:
    """The call up to the arguments' content, and the brace behind it."""
    for name in tool_names:
        if not name or any(tag in name for tag in _MARKUP):
            raise InputError(f"{name!r} cannot be the name of a tool; use letters, digits and _")
    names = tuple(json.dumps(name) for name in tool_names)
    return ("{",), ('"name"',), (":",), names, (",",), ('"arguments"',), (":",), ("{",), ("}",)


def _step(layout: Layout, state: State, char: str) -> State | None:
    """The state after one more byte (as the character of that number); None: it may not follow."""
    match state:
        case "text", prefix:
            after = _text(prefix, char)
            return None if after == ("opened",) and not layout[_NAMES] else after
        case "thought", prefix:
            prefix = _prefix(prefix + char, (_THOUGHT,))
            return START if prefix == _THOUGHT else ("thought", prefix)
        case ("opened",):
            return ("layout", 0, "", 0) if char == "\n" else None
        case "layout", part, prefix, spaces:
            return _fixed(layout, part, prefix, spaces, char)
        case "closing", prefix, spaces:
            return _closing(prefix, spaces, char)
        case "json", stack, expected, spaces:
            return _json(layout, stack, expected, spaces, char)
        case "word", stack, prefix:
            return _word(stack, prefix + char)
        case "number", stack, part, digits:
            return _number(layout, stack, part, digits, char)
        case "string", stack, is_key, prefix:
            return _string(stack, is_key, prefix, char)
        case "escape", stack, is_key:
            if char == "u":
                return ("hex", stack, is_key, 4)
            return ("string", stack, is_key, "") if char in '"\\/bfnrt' else None
        case "hex", stack, is_key, left:
            if char not in "0123456789abcdefABCDEF":
                return None
            return ("hex", stack, is_key, left - 1) if left > 1 else ("string", stack, is_key, "")
        case "utf8", stack, is_key, left, low, high:
            if not low <= ord(char) <= high:
                return None
            if left > 1:
                return ("utf8", stack, is_key, left - 1, 0x80, 0xBF)
            return ("string", stack, is_key, "")
    return None  # DONE


def _prefix(text: str, patterns: tuple[str, ...]) -> str:
    """The longest end of `text` with which one of the patterns begins."""
    ends = (text[i:] for i in range(len(text)))
    return next((end for end in ends if any(p.startswith(end) for p in patterns)), "")


def _text(prefix: str, char: str) -> State | None:
    """Outside of reasoning and calls; `prefix` is the begun markup."""
    grown = _prefix(prefix + char, _MARKUP)
    if grown == OPEN:
        return ("opened",)
    if grown == CLOSE:
        return None
    return ("thought", "") if grown == _THINK else ("text", grown)


def _fixed(layout: Layout, part: int, prefix: str, spaces: int, char: str) -> State | None:
    if not prefix and char in _SPACE:
        return ("layout", part, "", spaces + 1) if spaces < MAX_SPACES else None
    prefix += char
    if prefix not in layout[part]:
        fits = any(text.startswith(prefix) for text in layout[part])
        return ("layout", part, prefix, 0) if fits else None
    if part + 1 == len(layout):
        return ("closing", "", 0)
    if part + 2 == len(layout):
        return ("json", "{", "key or end", 0)
    return ("layout", part + 1, "", 0)


def _closing(prefix: str, spaces: int, char: str) -> State | None:
    """Behind the JSON; `CLOSE` has to stand at the beginning of a line."""
    if prefix in ("", "\n") and char in _SPACE and spaces < MAX_SPACES:
        if char == "\n":
            return ("closing", "\n", spaces + 1)
        return ("closing", "", spaces + 1) if spaces + 1 < MAX_SPACES else None
    prefix += char
    if prefix == f"\n{CLOSE}":
        return DONE
    return ("closing", prefix, 0) if f"\n{CLOSE}".startswith(prefix) else None


def _json(layout: Layout, stack: str, expected: str, spaces: int, char: str) -> State | None:
    """Between the parts of an object or array; `stack` holds the open brackets."""
    if char in _SPACE:
        return ("json", stack, expected, spaces + 1) if spaces < MAX_SPACES else None
    inside = stack[-1]
    if char == {"{": "}", "[": "]"}[inside] and expected in ("key or end", "value or end", "comma"):
        if len(stack) == 1:
            return ("layout", len(layout) - 1, "", 0)
        return ("json", stack[:-1], "comma", 0)
    match expected:
        case "comma":
            after = "key" if inside == "{" else "value"
            return ("json", stack, after, 0) if char == "," else None
        case "colon":
            return ("json", stack, "value", 0) if char == ":" else None
        case "key" | "key or end":
            return ("string", stack, True, "") if char == '"' else None
    return _value(stack, char)


def _value(stack: str, char: str) -> State | None:
    """The first character of a value."""
    if char == '"':
        return ("string", stack, False, "")
    if char in "{[":
        if len(stack) == MAX_DEPTH:
            return None
        return ("json", stack + char, "key or end" if char == "{" else "value or end", 0)
    if char in "-0":
        return ("number", stack, char, 0)
    if char in "123456789":
        return ("number", stack, "int", 1)
    return _word(stack, char)


def _word(stack: str, prefix: str) -> State | None:
    if prefix in _WORDS:
        return ("json", stack, "comma", 0)
    return ("word", stack, prefix) if any(w.startswith(prefix) for w in _WORDS) else None


def _number(layout: Layout, stack: str, part: str, digits: int, char: str) -> State | None:
    """`part` is the part of the number that was written last."""
    if char in "0123456789":
        match part:
            case "-":
                return ("number", stack, "0", 0) if char == "0" else ("number", stack, "int", 1)
            case "int":
                return ("number", stack, "int", digits + 1) if digits < MAX_DIGITS else None
            case "." | "fraction":
                return ("number", stack, "fraction", 0)
            case "e" | "sign":
                return ("number", stack, "exponent", 1)
            case "exponent" if digits < MAX_EXPONENT_DIGITS:
                return ("number", stack, "exponent", digits + 1)
        return None
    if char == "." and part in ("0", "int"):
        return ("number", stack, ".", 0)
    if char in "eE" and part in ("0", "int", "fraction"):
        return ("number", stack, "e", 0)
    if char in "+-" and part == "e":
        return ("number", stack, "sign", 0)
    if part in ("0", "int", "fraction", "exponent"):
        return _json(layout, stack, "comma", 0, char)
    return None


def _string(stack: str, is_key: bool, prefix: str, char: str) -> State | None:
    """Inside a string; `prefix` is the begun markup."""
    if char == '"':
        return ("json", stack, "colon" if is_key else "comma", 0)
    if char == "\\":
        return ("escape", stack, is_key)
    if char < " ":
        return None
    if char >= "\x80":
        return _utf8(stack, is_key, ord(char))
    prefix = _prefix(prefix + char, _MARKUP)
    return None if prefix in _MARKUP else ("string", stack, is_key, prefix)


def _utf8(stack: str, is_key: bool, byte: int) -> State | None:
    """The first byte of a character of several (RFC 3629, section 4)."""
    if 0xC2 <= byte <= 0xDF:
        return ("utf8", stack, is_key, 1, 0x80, 0xBF)
    if 0xE0 <= byte <= 0xEF:
        low, high = {0xE0: (0xA0, 0xBF), 0xED: (0x80, 0x9F)}.get(byte, (0x80, 0xBF))
        return ("utf8", stack, is_key, 2, low, high)
    if 0xF0 <= byte <= 0xF4:
        low, high = {0xF0: (0x90, 0xBF), 0xF4: (0x80, 0x8F)}.get(byte, (0x80, 0xBF))
        return ("utf8", stack, is_key, 3, low, high)
    return None
