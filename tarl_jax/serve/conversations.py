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

    def find(
        self, messages: Sequence[Message], tools: Sequence[dict[str, Any]], scope: str = ""
    ) -> tuple[Node | None, int]:
        """(the longest known beginning, how many messages it has).

        scope: conversations of another one are not seen.
        """
        for with_ids in (True, False):
            chain = _chain(messages, tools, scope, with_ids)
            for count in range(len(messages), 0, -1):
                if messages[count - 1].role != "assistant":
                    continue
                node = self._nodes.get(chain[count - 1])
                if node is not None:
                    self._nodes.move_to_end(chain[count - 1])
                    return node, count
        return None, 0

    def add(
        self, messages: Sequence[Message], tools: Sequence[dict[str, Any]], node: Node,
        scope: str = "",
    ) -> None:
        """Keeps the node behind these messages, the answer's among them."""
        for with_ids in (True, False):
            key = _chain(messages, tools, scope, with_ids)[-1]
            old = self._nodes.pop(key, None)
            self.tokens += len(node.context) - (0 if old is None else len(old.context))
            self._nodes[key] = node
        while self.tokens > self._max_tokens and len(self._nodes) > 2:
            _, oldest = self._nodes.popitem(last=False)
            self.tokens -= len(oldest.context)


def _chain(
    messages: Sequence[Message], tools: Sequence[dict[str, Any]], scope: str, with_ids: bool
) -> list[str]:
    """Per message a hash of all up to it."""
    value = hashlib.sha256(json.dumps([scope, tools], sort_keys=True).encode()).hexdigest()
    found = []
    for message in messages:
        said = message.content.strip() if message.role == "assistant" else message.content
        calls = [
            [call.name, call.arguments, call.id if with_ids else ""] for call in message.calls
        ]
        answers = message.call_id if with_ids else ""
        text = json.dumps([value, message.role, said, calls, answers], sort_keys=True)
        value = hashlib.sha256(text.encode()).hexdigest()
        found.append(value)
    return found
