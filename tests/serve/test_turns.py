"""What becomes of a turn's text, and of its thoughts when the conversation goes on."""

import types

import numpy as np
import pytest

from tarl_jax.serve.conversations import Node, Piece, Thought
from tarl_jax.serve.requests import Message
from tarl_jax.serve.turns import cut_at, going_on, shown, spoken

USER, TOOL = Message("user", "u"), Message("tool", "t")


def node(*thoughts):
    """Tokens 0..29; the turns at 10 and 20 begin with thoughts."""
    ids = np.arange(30, dtype=np.int32)
    return Node(None, (Piece(ids),), 3, 5, ids, thoughts)


def gone_on(reasoning, message, *thoughts):
    renderer = types.SimpleNamespace(following=lambda ids, messages: [*ids, 99])
    writer = types.SimpleNamespace(
        limits=types.SimpleNamespace(reasoning=reasoning), renderer=renderer)
    return going_on(writer, node(*thoughts), [message])


def test_without_thoughts_the_context_stays():
    for reasoning in ("kept", "template", "dropped"):
        start = gone_on(reasoning, USER)
        assert start.context == [*range(30), 99] and start.dropped == 3 and start.row == 5
        assert start.pieces[0].ids.tolist() == [99]


@pytest.mark.parametrize("reasoning, message, left, dropped, stays", [
    # As the engine counts: all tokens behind the first that leaves leave, and come back.
    ("dropped", TOOL, [*range(10), *range(12, 20), *range(24, 30)], 3 + 20, []),
    ("template", USER, [*range(10), *range(12, 20), *range(24, 30)], 3 + 20, []),
    # A tool's answer: the empty thought leaves, the other one stays, and has moved.
    ("template", TOOL, [*range(10), *range(12, 30)], 3 + 20, [Thought(18, 4, True)]),
])
def test_thoughts_leave_as_in_training(reasoning, message, left, dropped, stays):
    start = gone_on(reasoning, message, Thought(10, 2, False), Thought(20, 4, True))
    assert start.context == [*left, 99]
    assert start.dropped == dropped and list(start.thoughts) == stays


def test_a_thought_that_stays_before_one_that_leaves():
    start = gone_on("template", TOOL, Thought(10, 2, True), Thought(20, 4, False))
    assert start.context == [*range(20), *range(24, 30), 99]
    assert start.dropped == 3 + 10 and start.thoughts == (Thought(10, 2, True),)


@pytest.mark.parametrize("text, said", [
    ("Hello ", "Hello"), ("a<tool_call>\n{", "a"), ("a <think>b", "a"), ("<tool_call>", ""),
    ("x</tool_call>", "x"), ("\ud83d", "\ufffd"),
])
def test_what_is_said_holds_no_markup(text, said):
    assert spoken(text) == said


def test_the_first_stop_text_cuts():
    assert cut_at("one two three", ["three", "two"]) == "one"
    assert cut_at("one", ["two"]) is None and cut_at("one", ()) is None
    assert cut_at("stop", ["stop"]) == ""


def test_what_may_still_become_markup_is_not_shown_yet():
    assert shown("a <tool", ()) == "a " and shown("a <", ()) == "a "
    assert shown("a < b", ()) == "a < b"
    assert shown("half \ufffd", ()) == "half "
    assert shown("the EN", ["END"]) == "the " and shown("the END", ["END"]) == "the END"
