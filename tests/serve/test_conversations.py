"""Conversations found again by what is sent back."""

import numpy as np

from tarl_jax.serve.conversations import Conversations, Node, Piece, keys_of
from tarl_jax.serve.requests import Message, ToolCall

HELLO, MORE = Message("user", "hello"), Message("user", "more")
TOOLS = ({"type": "function", "function": {"name": "get"}},)


def node(number, before=None):
    ids = np.array([number] * 10, np.int32)
    return Node(before, (Piece(ids),), 0, number, ids)


def add(known, messages, tools, node, scope=""):
    known.add(keys_of(messages, tools, scope)[-1], node)


def find(known, messages, tools, scope=""):
    return known.find(messages, keys_of(messages, tools, scope))


def said(text):
    return Message("assistant", text)


def called(call_id, **arguments):
    return Message("assistant", "", (ToolCall(call_id, "get", arguments),))


def test_the_longest_known_beginning_is_found():
    known = Conversations()
    first, second = node(1), node(2)
    add(known, [HELLO, said("hi")], (), first)
    add(known, [HELLO, said("hi"), MORE, said("ok")], (), second)
    assert find(known, [HELLO, said("hi"), MORE], ()) == (first, 2)
    assert find(known, [HELLO, said("hi"), MORE, said("ok"), MORE], ()) == (second, 4)
    assert find(known, [HELLO, said("other"), MORE], ()) == (None, 0)
    assert find(known, [HELLO, said("hi"), said("ok"), MORE], ()) == (first, 2)
    assert find(known, [HELLO], ()) == (None, 0)
    assert find(known, [HELLO, said("hi"), MORE], TOOLS) == (None, 0)


def test_what_clients_do_to_a_message_does_not_matter():
    known = Conversations()
    add(known, [HELLO, said("hi ")], (), node(1))
    assert find(known, [HELLO, said(" hi"), MORE], ())[1] == 2
    add(known, [HELLO, called("c1", a=1, b="x")], TOOLS, node(2))
    back = Message("assistant", "", (ToolCall("c1", "get", {"b": "x", "a": 1}),))
    assert find(known, [HELLO, back], TOOLS)[0].row == 2


def test_ids_of_calls_tell_equal_words_apart():
    known = Conversations()
    add(known, [HELLO, called("c1", a=1)], TOOLS, node(1))
    add(known, [HELLO, called("c2", a=1)], TOOLS, node(2))
    assert find(known, [HELLO, called("c1", a=1)], TOOLS)[0].row == 1
    assert find(known, [HELLO, called("c2", a=1)], TOOLS)[0].row == 2
    # Ids that a client made up: the newest of the same words.
    assert find(known, [HELLO, called("call_0", a=1)], TOOLS)[0].row == 2
    assert find(known, [HELLO, called("call_0", a=2)], TOOLS)[0] is None


def test_the_longest_unused_are_forgotten_first():
    known = Conversations(max_tokens=45)
    for number in range(3):
        add(known, [Message("user", str(number)), said("hi")], (), node(number))
    assert find(known, [Message("user", "0"), said("hi")], ())[0].row == 0
    for number in range(3, 5):
        add(known, [Message("user", str(number)), said("hi")], (), node(number))
    found = [find(known, [Message("user", str(n)), said("hi")], ())[0] for n in range(5)]
    assert [n is not None for n in found] == [True, False, True, True, True]
    assert known.tokens <= 45


def test_a_chain_is_all_pieces_in_order():
    first = node(1)
    assert [p.ids[0] for p in node(3, node(2, first)).chain()] == [1, 2, 3]


def test_scopes_are_apart():
    known = Conversations()
    add(known, [HELLO, said("hi")], (), node(1), "a")
    add(known, [HELLO, said("hi")], (), node(2), "b")
    assert [find(known, [HELLO, said("hi")], (), s)[0].row for s in "ab"] == [1, 2]
    assert find(known, [HELLO, said("hi")], ())[0] is None
