"""Turns as models write them, with the reading that each should get."""

import itertools
import json

import pytest

from tarl_jax.text.reading import TOO_LONG, read_turn
from tarl_jax.types import Call

A = Call("get_order_details", {"order_id": "#W1"})
B = Call("calculate", {"expression": "100.5 + 2"})
NONE = Call("list_all_product_types", {})
AJ = '{"name": "get_order_details", "arguments": {"order_id": "#W1"}}'
BJ = '{"name": "calculate", "arguments": {"expression": "100.5 + 2"}}'


def block(content, before="\n", after="\n"):
    return f"<tool_call>{before}{content}{after}</tool_call>"


ONE, JSON, KEYS, OBJECT = "exactly one", "not valid JSON", "the keys", "an object"
THINK, EMPTY = "close <think>", "empty"


def no(reason):
    return ("refused", reason)


# (what was written, what it is): a message, the calls that are made, or why it is refused.
BODIES = [
    ("Your order is on its way. Anything else?", "Your order is on its way. Anything else?"),
    ("\n\nSure!\n\n- one\n- two\n", "Sure!\n\n- one\n- two"),
    ("The total is 5 < 7 <b>bold</b> & <tool>", "The total is 5 < 7 <b>bold</b> & <tool>"),
    (block(AJ), [A]),
    (block(AJ, "", ""), [A]),
    (block(AJ, "\r\n", "\r\n"), [A]),
    (block(AJ, " ", "\n\n  "), [A]),
    (f"Let me look that up.\n{block(AJ)}", [A]),
    (f"{block(AJ)}\nI am waiting for the result.", [A]),
    (block(json.dumps(json.loads(AJ), indent=2)), [A]),
    (block('{"name":"list_all_product_types"}'), [NONE]),
    (block('{"name": "list_all_product_types", "arguments": null}'), [NONE]),
    (block('{"arguments": {"order_id": "#W1"}, "name": "get_order_details"}'), [A]),
    (f"{block(AJ)}\n{block(BJ)}", no(ONE)),
    (block(AJ[:-1]), no(JSON)),
    ("", no(EMPTY)),
]
# (reasoning as it is written, what it is).
THOUGHTS = [
    ("", ""),
    ("<think>\nThe user wants #W1.\n</think>\n\n", "The user wants #W1."),
    ("<think>\n\n</think>\n\n", ""),
    ("<think></think>", ""),
    ("<think>The user wants #W1.</think>", "The user wants #W1."),
    ("<think>\r\nA line.\r\nAnother.\r\n</think>\r\n\r\n", "A line.\r\nAnother."),
    ("\n<think>\n\n\nWell…\n\n</think>\n", "Well…"),
    ("The tag is in the prompt.\n</think>\n\n", "The tag is in the prompt."),
    ("\n</think>\n\n", ""),
    ("</think>", ""),
    (f"<think>\nI could call\n{block(BJ)}\nbut no.\n</think>\n\n",
     f"I could call\n{block(BJ)}\nbut no."),
    (f"I could call\n{block(BJ)}\nbut no.\n</think>\n\n", f"I could call\n{block(BJ)}\nbut no."),
    ("<think>\nA <tool_call> would do, or two <tool_call>.\n</think>\n\n",
     "A <tool_call> would do, or two <tool_call>."),
    ("<think>\nFirst.\n</think>\n\n<think>\nSecond.\n</think>\n\n", "First.\nSecond."),
    ("<think>\nIs <think> nested?\n</think>\n\n", "Is <think> nested?"),
]
# Turns that are more than reasoning and a body.
WHOLE = [
    # Reasoning without an end, and what only looks like reasoning.
    ("<think>\nDone. Anything else?", no(THINK)),
    (f"<think>\n{block(AJ)}", no(THINK)),
    ("Sure.\n<think>\nhm", no(THINK)),
    ("<think>", no(THINK)),
    ("<think>\nFirst.\n</think>\n\n<think>\nSecond. Done.", no(THINK)),
    ("<thinking>So.</thinking> Done.", "<thinking>So.</thinking> Done."),
    ("I think > you < me. think>", "I think > you < me. think>"),
    ("< think >So.< /think > Done.", "< think >So.< /think > Done."),
    ("One moment.<think>\nhm\n</think>\n\n Done.", "One moment.\n\n Done."),
    (f"One moment.\n<think>hm</think>\n{block(AJ)}", [A]),
    (f"{block(AJ)}<think>\nand now wait\n</think>\n\n", [A]),
    (f"{block(AJ)}\n</think>\n\nDone.", "Done."),
    (f"{block(AJ)}\n</think>\n\n{block(BJ)}", [B]),
    ("I need <tool_call> no tool.\n</think>\n\nDone.", "Done."),
    ("I need </tool_call> no tool.\n</think>\n\nDone.", "Done."),
    ("<tool_call>\n{\"name\": \n</think>\n\nDone.", "Done."),
    ("<think>a</think><think>b</think><think>c</think>", no(EMPTY)),
    # Markup in the strings of a call is text.
    (block('{"name": "think", "arguments": {"thought": "a </think> b"}}'),
     [Call("think", {"thought": "a </think> b"})]),
    (block('{"name": "think", "arguments": {"thought": "<think>\\nhm\\n</think>\\n\\n"}}'),
     [Call("think", {"thought": "<think>\nhm\n</think>\n\n"})]),
    (block('{"name": "think", "arguments": {"thought": "x</tool_call>"}}'),
     [Call("think", {"thought": "x</tool_call>"})]),
    (block('{"name": "think", "arguments": {"thought": "<tool_call>{}</tool_call>"}}'),
     [Call("think", {"thought": "<tool_call>{}</tool_call>"})]),
    (block('{"name": "think", "arguments": {"thought": "\\"<think>"}}'),
     [Call("think", {"thought": '"<think>'})]),
    # What JSON allows.
    (block(AJ.replace(": ", ":").replace(", ", ",")), [A]),
    (block("\n\t" + AJ + " "), [A]),
    (block('{"name": "calculate", "arguments": {"expression": "5 \\u20ac 2"}}'),
     [Call("calculate", {"expression": "5 € 2"})]),
    (block('{"name": "calculate", "arguments": {"expression": "5 € 2"}}'),
     [Call("calculate", {"expression": "5 € 2"})]),
    (block('{"name": "x", "arguments": {"a": [1, 2.5, -3e2, true, null, {"b": []}]}}'),
     [Call("x", {"a": [1, 2.5, -300.0, True, None, {"b": []}]})]),
    (block('{"name": "x", "arguments": {"": "", "a b": "\\n"}}'),
     [Call("x", {"": "", "a b": "\n"})]),
    (block('{"name": "x", "arguments": {"a": 1, "a": 2}}'), [Call("x", {"a": 2})]),
    (block('{"name": "no such tool", "arguments": {}}'), [Call("no such tool", {})]),
    (block('{"name": "x", "arguments": {"a": "\\ud83d\\ude00 \\ud83d"}}'),
     [Call("x", {"a": "😀 \ufffd"})]),
    # What it does not.
    (block("{'name': 'x', 'arguments': {}}"), no(JSON)),
    (block('{"name": "x", "arguments": {"a": 1,}}'), no(JSON)),
    (block('{"name": "x", "arguments": {"a": None}}'), no(JSON)),
    (block('{"name": "x", "arguments": {"a": NaN}}'), no(JSON)),
    (block('{"name": "x", "arguments": {"a": 1e999}}'), no(JSON)),
    (block('{"name": "x", "arguments": {"a": "line\nbreak"}}'), no(JSON)),
    (block('{"name": "x", "arguments": {}}}'), no(JSON)),
    (block('{"name": "x" "arguments": {}}'), no(JSON)),
    (block('{name: "x", arguments: {}}'), no(JSON)),
    (block(f"```json\n{AJ}\n```"), no(JSON)),
    (block(f"{AJ}\n{BJ}"), no(JSON)),
    (block(f"{AJ},"), no(JSON)),
    (block("get_order_details(order_id='#W1')"), no(JSON)),
    (block("<function=x><parameter=a>1</parameter></function>"), no(JSON)),
    (block(""), no(JSON)),
    (block("{"), no(JSON)),
    (block('"' + "x" * 50), no(JSON)),
    (block("[" * 2000), no(JSON)),
    (block("[" * 200 + "]" * 200), no(JSON)),
    # JSON that is no call.
    (block("[]"), no(KEYS)),
    (block(f"[{AJ}]"), no(KEYS)),
    (block("null"), no(KEYS)),
    (block('"get_order_details"'), no(KEYS)),
    (block("{}"), no(KEYS)),
    (block('{"arguments": {}}'), no(KEYS)),
    (block('{"name": "x", "parameters": {"a": 1}}'), no(KEYS)),
    (block('{"name": "x", "arguments": {}, "id": "call_1"}'), no(KEYS)),
    (block('{"type": "function", "function": {"name": "x", "arguments": {}}}'), no(KEYS)),
    (block('{"tool": "x", "arguments": {}}'), no(KEYS)),
    (block('{"name": null, "arguments": {}}'), no(OBJECT)),
    (block('{"name": ["x"], "arguments": {}}'), no(OBJECT)),
    (block('{"name": "x", "arguments": []}'), no(OBJECT)),
    (block('{"name": "x", "arguments": "{}"}'), no(OBJECT)),
    (block('{"name": "x", "arguments": 0}'), no(OBJECT)),
    # Blocks that are not whole.
    (f"<tool_call>\n{AJ}", no(ONE)),
    (f"<tool_call>{AJ}<tool_call>", no(ONE)),
    (f"{AJ}\n</tool_call>", no(ONE)),
    (f"</tool_call>\n{AJ}\n<tool_call>", no(ONE)),
    (f"<tool_call>\n{block(AJ)}", no(ONE)),
    (f"{block(AJ)}\n</tool_call>", no(ONE)),
    (f"{block(AJ)}{block(AJ)}{block(BJ)}", no(ONE)),
    (f"{block(AJ)}\n<tool_call>", no(ONE)),
    (f"{block(AJ)}\n{block('{')}", no(ONE)),
    ("I will use <tool_call>.", no(ONE)),
    ("Done.</tool_call>", no(ONE)),
    # Words that look like calls, or are of other formats, are words.
    (AJ, AJ),
    (f"```json\n{AJ}\n```", f"```json\n{AJ}\n```"),
    (f"<toolcall>{AJ}</toolcall>", f"<toolcall>{AJ}</toolcall>"),
    ("<|im_start|>user\nYes.", "<|im_start|>user\nYes."),
    ("<tool_response>\n{}\n</tool_response>", "<tool_response>\n{}\n</tool_response>"),
    (f"{block(AJ)}\n<tool_response>\n{{}}\n</tool_response>\nDone.", [A]),
    ("###STOP###", "###STOP###"),
    ("  \u00a0Hello\u3000", "Hello"),
    (" \r\n\t", no(EMPTY)),
    ("\u2028", no(EMPTY)),
]
MESSY = [
    (thought + body, wanted, means)
    for (thought, means), (body, wanted) in itertools.product(THOUGHTS, BODIES)
] + [(text, wanted, None) for text, wanted in WHOLE]


def test_there_are_many():
    assert len(MESSY) >= 200 and len({text for text, _, _ in MESSY}) > 300


@pytest.mark.parametrize("text, wanted, thought", MESSY, ids=range(len(MESSY)))
def test_a_turn_is_read_as_it_is_meant(text, wanted, thought):
    turn = read_turn(text)
    if isinstance(wanted, tuple):
        assert wanted[1] in turn.problem and not turn.message and not turn.calls
    elif isinstance(wanted, str):
        assert (turn.message, turn.calls, turn.problem, turn.unheard) == (wanted, (), "", "")
    else:
        assert (list(turn.calls), turn.message, turn.problem) == (wanted, "", "")
    assert turn.text == text
    if thought is not None:
        assert turn.thought == thought
    cut = read_turn(text, ended=False)
    assert cut.problem == TOO_LONG and not cut.message and not cut.calls
    assert cut.thought == turn.thought


TWO, BROKEN = f"Look:\n{block(AJ)}\n{block(BJ)}", f"{block(AJ)}\n{block('{')}"


@pytest.mark.parametrize("text, several, wanted", [
    (TWO, "first", [A]), (TWO, "all", [A, B]), (TWO, "refused", no(ONE)),
    (block(AJ) * 3, "first", [A]), (block(AJ) * 3, "all", [A, A, A]),
    (f"<think>\n{block(BJ)}\n</think>\n\n{block(AJ)}", "all", [A]),
    (block(AJ), "first", [A]), (block(AJ), "all", [A]),
    # What is made must be readable; with "all" that is every one, or none is made.
    (BROKEN, "first", [A]), (BROKEN, "all", no(JSON)),
    (f"{block('{')}\n{block(AJ)}", "first", no(JSON)),
    (f"{block(AJ)}\n<tool_call>", "first", [A]),
    (f"{block(AJ)}\n<tool_call>", "all", no("each call as one block")),
    (f"</tool_call>{block(AJ)}", "first", no("each call as one block")),
    ("Hello.", "first", "Hello."), ("Hello.", "all", "Hello."),
])
def test_several_calls_in_a_turn(text, several, wanted):
    turn = read_turn(text, several)
    if isinstance(wanted, tuple):
        assert wanted[1] in turn.problem and not turn.calls
    elif isinstance(wanted, str):
        assert turn.message == wanted
    else:
        assert list(turn.calls) == wanted and not turn.problem and not turn.message
    assert turn.unheard == ("Look:" if text == TWO and not turn.problem else turn.unheard)


def test_what_a_refused_turn_wrote_is_kept_apart_from_its_thought():
    turn = read_turn(f"<think>\nhm $12\n</think>\n\n{block('{')}")
    assert turn.thought == "hm $12" and turn.unheard == block("{")
    turn = read_turn("Sure.\n<think>\nhm $12")
    assert turn.thought == "hm $12" and turn.unheard == "Sure."
