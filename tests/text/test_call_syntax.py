"""The automaton of an agent turn against Python's json and the reader of turns."""

import json
import random
import re

import numpy as np
import pytest
from random_json import random_arguments

from tarl_jax.text import call_syntax
from tarl_jax.text.call_syntax import automaton

NAMES = ("get_order", "get_order_details", "think")
STATES, STEPS = automaton(NAMES)


def end_of(text):
    """The state after a text, None where it is refused."""
    state = 0
    for byte in text if isinstance(text, bytes) else text.encode():
        state = STEPS[state, byte]
        if state < 0:
            return None
    return STATES[state]


def call_is_read(content):
    return end_of(f"<tool_call>\n{content}\n</tool_call>") == call_syntax.DONE


def arguments_are_read(content):
    return call_is_read(f'{{"name": "think", "arguments": {content}}}')


def number_is_read(text):
    assert arguments_are_read(f'{{"x": {text}}}') == arguments_are_read(f'{{"x": [{text}]}}')
    return arguments_are_read(f'{{"x": {text}}}')


def test_every_call_that_json_writes_is_read():
    rng = random.Random(0)
    for _ in range(300):
        call = {"name": rng.choice(NAMES), "arguments": random_arguments(rng)}
        for ascii_only in (True, False):
            for separators in ((", ", ": "), (",", ":"), (" ,\n", " : ")):
                text = json.dumps(call, ensure_ascii=ascii_only, separators=separators)
                assert call_is_read(text), text
        assert call_is_read(f" {text}\t")


def json_reads(text):
    """Whether Python's json finds a call of a known tool, within the limits on numbers."""
    try:
        data = json.loads(text.decode("utf-8"))
    except ValueError:
        return False
    known = isinstance(data, dict) and list(data) == ["name", "arguments"] and data["name"] in NAMES
    bare = re.sub(r'"(\\.|[^"\\])*"', '""', text.decode())
    return known and not re.search(r"\d{20}|e[+-]?\d{3}", bare)


def test_a_changed_call_is_read_where_json_reads_it():
    rng = random.Random(1)
    read = 0
    for _ in range(3000):
        call = {"name": rng.choice(NAMES), "arguments": random_arguments(rng)}
        text = json.dumps(call, ensure_ascii=False).encode()
        i = rng.randrange(len(text))
        other = bytes([rng.choice(b'{}[]",:\\ 0-e.t<u\n')])
        text = text[:i] + rng.choice([b"", text[i : i + 1] * 2, other]) + text[i + 1 :]
        accepted = end_of(b"<tool_call>\n" + text + b"\n</tool_call>") == call_syntax.DONE
        assert accepted == json_reads(text), text
        read += accepted
    assert 300 < read < 2700


@pytest.mark.parametrize("content", [
    '{"name": "think", "arguments": {}}',
    ' {\n"name":"get_order" , "arguments"\t:{ "a" : [ ] , "b":{ } }\n}\t',
    '{"name": "get_order_details", "arguments": {"a": [[1], {"b": 2}]}}',
    '{"name": "think", "arguments": {"a": "<tool_calls> </think> < <tool_cal"}}',
    '{"name": "think", "arguments": {"a": "\\u003ctool_call> \\ud800 \\" \\\\"}}',
])
def test_calls(content):
    assert call_is_read(content)


@pytest.mark.parametrize("content", [
    "", "{}", "[]", "null",
    '{"name": "thinks", "arguments": {}}',
    '{"name": "thin", "arguments": {}}',
    '{"name": "get_order_", "arguments": {}}',
    '{"name": "", "arguments": {}}',
    '{"name": 1, "arguments": {}}',
    '{"name": "think"}',
    '{"name": "think", "arguments": []}',
    '{"name": "think", "arguments": "{}"}',
    '{"name": "think", "arguments": {}, "id": 1}',
    '{"name": "think", "arguments": {},}',
    '{"name": "think", "arguments": {}',
    '{"name": "think", "arguments": {}}}',
    '{"name": "think", "arguments": {}} {}',
    '{"name": "think", "arguments": {"a": 1,}}',
    '{"name": "think", "arguments": {"a": [1,]}}',
    '{"name": "think", "arguments": {,}}',
    '{"name": "think", "arguments": {"a"}}',
    '{"name": "think", "arguments": {"a": }}',
    '{"name": "think", "arguments": {1: 1}}',
    '{"name": "think", "arguments": {"a": 1 "b": 2}}',
    '{"name": "think", "arguments": {"a": [1}]}}',
    '{"name": "think", "arguments": {"a": "x}}',
    '{"name": "think", "arguments": {"a": "x\ny"}}',
    '{"name": "think", "arguments": {"a": "\\x"}}',
    '{"name": "think", "arguments": {"a": "\\u12g4"}}',
    '{"name": "think", "arguments": {"a": \'x\'}}',
    '{"name": "think", "arguments": {"a": True}}',
    '{"name": "think", "arguments": {"a": nul}}',
    '{"name": "think", "arguments": {"a": NaN}}',
    # JSON, but not what the reader of turns takes for one call.
    '{"name": "think", "arguments": {"a": "<tool_call>"}}',
    '{"name": "think", "arguments": {"a": "x</tool_call>"}}',
    '{"name": "think", "arguments": {"a<think>": 1}}',
    '{"name": "think", "arguments": {"a": "<<tool_call>"}}',
    # JSON, but beyond the limits.
    '{"name": "think", "arguments": {"a": [[[1]]]}}',
    '{"name": "think", "arguments":   {}}',
])
def test_what_is_no_call(content):
    assert not call_is_read(content)


@pytest.mark.parametrize("text", [
    "0", "-0", "7", "-12", "0.5", "10.0625", "1e5", "1E+05", "2.5e-3", "1" * 19, "0." + "3" * 40,
])
def test_numbers(text):
    assert number_is_read(text) and np.isfinite(json.loads(text))


@pytest.mark.parametrize("text", [
    "-", "+1", "01", "-01", ".5", "1.", "1.e5", "1e", "1e+", "0x1", "1_0", "--1", "1.2.3", "1e5.0",
    "1" * 20, "1e100",
])
def test_what_is_no_number(text):
    assert not number_is_read(text)


def test_strings_are_valid_utf_8():
    # Against Python's decoder: every sequence of two bytes, and of the critical three and four.
    before = b'<tool_call>\n{"name": "think", "arguments": {"a": "'
    edges = [0x7F, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0xC0]
    sequences = [bytes([a, b]) for a in range(0x80, 256) for b in edges]
    sequences += [bytes([a, b, c]) for a in (0xE0, 0xE1, 0xED, 0xEF) for b in edges for c in edges]
    sequences += [bytes([a, b, c, 0x80]) for a in range(0xF0, 0xF6) for b in edges for c in edges]
    valid = 0
    for text in sequences:
        try:
            text.decode()
        except UnicodeDecodeError:
            expected = False
        else:
            expected = valid = True
        assert (end_of(before + text + b'"}}\n</tool_call>') == call_syntax.DONE) == expected, text
    assert valid


CALL = '<tool_call>\n{"name": "think", "arguments": {}}\n</tool_call>'


@pytest.mark.parametrize("text", [
    "One moment.\n" + CALL,
    "a < b, <<b>, <tool, </tool_call x " + CALL,
    "<think>\nhm <tool_call> </tool_call> <think>\n</think>\n</think>\n\n" + CALL,
    "<think>\n\n</think>\n\n" + CALL,
    "<think>\na\n</think>\n\nb<think>\n\n\n</think>\n\n" + CALL,
    "<think>hm</think>" + CALL, "hm</think>" + CALL, "<tool<think>\r\n</think>_call>" + CALL,
])
def test_what_may_stand_before_a_call(text):
    assert end_of(text) == call_syntax.DONE


@pytest.mark.parametrize("text", [
    CALL + "x", CALL + "\n", CALL + CALL, "</tool_call>", "<tool_call>{", "<tool_call> \n{",
    "<tool_call>\n<tool_call>",
    "<think></think></tool_call>", "<think>hm</think><tool_call>{",
    # One character of white space too many in front of the end.
    CALL.replace("}}\n", "}}   \n"),
])
def test_what_may_not(text):
    assert end_of(text) is None


def test_where_a_turn_may_end():
    for text in ("", "Done.", "a <tool", "<think>", "<think>\nhm", "<think>hm <tool_call>"):
        assert call_syntax.is_free(end_of(text))
    for text in ("<tool_call>", "<tool_call>\n", CALL[:20], CALL[:-1], CALL):
        assert not call_syntax.is_free(end_of(text))


def test_tools_must_have_names():
    with pytest.raises(ValueError, match="'a<think>' cannot be the name"):
        automaton(("x", "a<think>"))


def test_one_name_may_begin_another():
    for name in ("get_order", "get_order_details"):
        assert call_is_read(f'{{"name": "{name}", "arguments": {{}}}}')
