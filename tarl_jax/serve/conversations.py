"""Conversations, found again by what a client sends back.

Nothing on the wire names a conversation. What it has said and heard does: a chain of hashes over
its messages leads to the tokens that the policy saw and wrote, which are never rendered anew. Ids
of tool calls are part of the chain, so that conversations of the same words are told apart; where a
client has changed the ids, the words alone are enough.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np

from tarl_jax.serve.requests import Message


@dataclasses.dataclass(frozen=True, eq=False)
class Piece:
    """A run of tokens; log_probs: of a turn of the policy, None: the tokens were given to it.

    forced: how many tokens of a turn, the first ones, it did not draw.
    """

    ids: np.ndarray
    log_probs: np.ndarray | None = None
    forced: int = 0


@dataclasses.dataclass(frozen=True)
class Thought:
    """A turn in the context that begins with reasoning.

    start: of the turn in the context; count: tokens of the reasoning; thinks: whether it is not
    empty.
    """

    start: int
    count: int
    thinks: bool


@dataclasses.dataclass(frozen=True, eq=False)
class Node:
    """A conversation up to the end of an answer of ours.

    Attributes:
      before: the node that it goes on from; None: its pieces begin the conversation.
      pieces: what came since.
      dropped: tokens that have left the context.
      row: where the session continued it last.
      context: its tokens; all pieces one after the other, where nothing was dropped.
      thoughts: turns whose reasoning may leave the context later.
    """

    before: Node | None
    pieces: tuple[Piece, ...]
    dropped: int
    row: int
    context: np.ndarray
    thoughts: tuple[Thought, ...] = ()

    def chain(self) -> list[Piece]:
        """All pieces, from the beginning."""
        nodes = [self]
        while (before := nodes[-1].before) is not None:
            nodes.append(before)
        return [piece for node in reversed(nodes) for piece in node.pieces]


# A hash of messages up to a place, with the ids of their calls, and one of the words alone.
Key = tuple[str, str]


class Conversations:
    """The nodes, the ones longest unused forgotten first.

    max_tokens: of the contexts that are kept.
    """

    def __init__(self, max_tokens: int = 50_000_000):
        self._max_tokens = max_tokens
        self._nodes: OrderedDict[str, Node] = OrderedDict()
        self.tokens = 0

    def __len__(self) -> int:
        return len(self._nodes)

    def find(self, messages: Sequence[Message], keys: Sequence[Key]) -> tuple[Node | None, int]:
        """(the longest known beginning, how many messages it has).

        keys: of the messages, from `keys_of`.
        """
        for kind in (0, 1):
            for count in range(len(messages), 0, -1):
                if messages[count - 1].role != "assistant":
                    continue
                node = self._nodes.get(keys[count][kind])
                if node is not None:
                    self._nodes.move_to_end(keys[count][kind])
                    return node, count
        return None, 0

    def add(self, key: Key, node: Node) -> None:
        """Keeps the node behind the messages of this key, the answer's among them."""
        for text in dict.fromkeys(key):
            old = self._nodes.pop(text, None)
            self.tokens += len(node.context) - (0 if old is None else len(old.context))
            self._nodes[text] = node
        while self.tokens > self._max_tokens and len(self._nodes) > 2:
            _, oldest = self._nodes.popitem(last=False)
            self.tokens -= len(oldest.context)


def keys_of(
    messages: Sequence[Message], tools: Sequence[dict[str, Any]], scope: str = ""
) -> list[Key]:
    """Of each beginning of the messages, the empty one first.

    scope: conversations of another one are not found.
    """
    begin = _hash(json.dumps([scope, tools], sort_keys=True))
    keys = [(begin, begin)]
    for message in messages:
        keys.append(further(keys[-1], message))
    return keys


def further(key: Key, message: Message) -> Key:
    """Of the messages of this key, and one more."""
    said = message.content.strip() if message.role == "assistant" else message.content
    ids, named = message.call_id, bool(message.call_id)
    if message.calls:
        said = json.dumps([said, *([c.name, c.arguments] for c in message.calls)], sort_keys=True)
        ids = json.dumps([ids, *(call.id for call in message.calls)])
        named = named or any(call.id for call in message.calls)
    words = f"{message.role} {len(message.calls)} {len(said)}\n{said}"
    alone = _hash(key[1], words)
    if key[0] == key[1] and not named:
        return alone, alone
    return _hash(key[0], words, ids), alone


def _hash(*texts: str) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()
