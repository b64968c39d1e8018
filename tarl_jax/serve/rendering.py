"""Messages of a client as tokens, in the chat layout that the policy was trained in."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import groupby
from typing import Any

from tarl_jax.serve.requests import Message
from tarl_jax.text.chat import Chat
from tarl_jax.text.pretrained_tokenizer import PretrainedTokenizer
from tarl_jax.text.tokenizer import IM_END, IM_START, Tokenizer

_OPENS = f"{IM_END}\n{IM_START}assistant\n"


class Renderer:
    """Renders what others wrote; what the policy wrote itself is never rendered anew.

    system: what opens a conversation without a system message: the run's own text.
    shows_tools: whether the system turn holds the tools' schemas, as in training.
    own_system: that text opens all conversations, whatever their system messages say.
    """

    def __init__(
        self, tokenizer: Tokenizer | PretrainedTokenizer, chat: Chat, system: str,
        shows_tools: bool, own_system: bool = False,
    ):
        self._tokenizer = tokenizer
        self._chat = chat
        self._system = system
        self._shows_tools = shows_tools
        self._own_system = own_system
        self._opens = list(tokenizer.encode_markup(_OPENS))

    def opening(
        self, messages: Sequence[Message], tools: Sequence[dict[str, Any]]
    ) -> list[int]:
        """A whole conversation, up to where the policy writes."""
        count = next((i for i, m in enumerate(messages) if m.role != "system"), len(messages))
        said = [] if self._own_system else [m.content for m in messages[:count]]
        text = "\n\n".join(said) if said else self._system
        ids = self._chat.system(text, tools if self._shows_tools else ())
        return self.following(ids, messages[count:])

    def following(self, context: Sequence[int], messages: Sequence[Message]) -> list[int]:
        """The context, which ends with a turn, and what was said since, up to the policy's turn."""
        ids, opened = list(context), False
        for kind, group in groupby(messages, lambda m: "user" if m.role == "system" else m.role):
            several = list(group)
            if kind == "assistant":
                for message in several:
                    ids += self.agent(message) if opened else self._unasked(ids, message)
                    opened = False
                continue
            if opened or not ids or ids[-1] not in self._chat.stop_ids:
                ids.append(self._chat.stop_id)  # a turn that was not ended, or left out
            texts = [m.content for m in several]
            ids += self._tools(texts) if kind == "tool" else self._chat.user("\n".join(texts))
            opened = True
        if not opened:
            self._open(ids)
        return ids

    def _tools(self, texts: Sequence[str]) -> list[int]:
        """The results of one turn's calls."""
        last = len(texts) - 1
        try:
            return [token for place, text in enumerate(texts)
                    for token in self._chat.tool(text, place == 0, place == last)]
        except ValueError:  # the tokenizer has no markup between them
            return self._chat.tool("\n".join(texts))

    def _unasked(self, ids: list[int], message: Message) -> list[int]:
        """A turn of the agent's behind the system turn or another of its own, as a greeting."""
        if ids and ids[-1] not in self._chat.stop_ids:
            ids.append(self._chat.stop_id)
        begin = self._chat.greeting("")[:-1]
        return [*begin, *self.agent(message)]

    def _open(self, ids: list[int]) -> None:
        """Begins a turn of the agent behind another turn."""
        if ids and ids[-1] in self._chat.stop_ids:
            ids.pop()
        ids += self._opens

    def agent(self, message: Message) -> list[int]:
        """A turn of the agent, its end token included."""
        encode, markup = self._tokenizer.encode, self._tokenizer.encode_markup
        ids = encode(message.content)
        for number, call in enumerate(message.calls):
            if number or message.content:
                ids += encode("\n")
            data = json.dumps({"name": call.name, "arguments": call.arguments},
                              ensure_ascii=self._tokenizer.ascii_json)
            ids += [*markup("<tool_call>\n"), *encode(data), *markup("\n</tool_call>")]
        return [*ids, self._chat.stop_id]
