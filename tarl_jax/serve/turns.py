"""One turn of the policy as an answer: attempts until it can be read, and what becomes of each."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import secrets
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tarl_jax.config.plain import plain
from tarl_jax.rollout.episode import ATTEMPTS, CLOSING, SHORT
from tarl_jax.rollout.grammar import Grammar
from tarl_jax.rollout.session import Ask, Listener, Session, Written
from tarl_jax.serve.conversations import Node, Piece, Thought
from tarl_jax.serve.rendering import Renderer
from tarl_jax.serve.requests import ChatRequest, Message, ToolCall
from tarl_jax.text.chat import Chat
from tarl_jax.text.pretrained_tokenizer import PretrainedTokenizer
from tarl_jax.text.reading import read_turn
from tarl_jax.text.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Limits:
    """context: tokens of a conversation; turn: of an answer; constrain: calls by a grammar.

    reasoning: whether it stays in the context, as `rollout.reasoning` has it.
    """

    context: int
    turn: int
    constrain: bool = True
    reasoning: str = "kept"


@dataclasses.dataclass(frozen=True)
class Answer:
    """What the policy said or called, and what it cost.

    Attributes:
      finish: "stop", "tool_calls" or "length".
      ids, log_probs: of the last turn that it wrote, which the answer was read from.
      prompt: tokens of the context before the answer; `cached` of them were known already.
      fed: tokens that were read for it, what was said to turns that could not be read among them.
      written: tokens that were written, those of turns that could not be read among them.
      attempts: turns that were written.
      node: where the conversation goes on; None of a completion.
    """

    content: str
    reasoning: str
    calls: tuple[ToolCall, ...]
    finish: str
    ids: list[int]
    log_probs: list[float]
    prompt: list[int]
    fed: int
    written: int
    attempts: int
    node: Node | None = None
    cached: int = 0


Emit = Callable[[str, str], None]  # (reasoning so far, content so far), each longer than before


class Writer:
    """The policy as a turn needs it: how it is asked, rendered to and read.

    Attributes:
      counts: what happened, for metrics.
    """

    def __init__(
        self, session: Session, tokenizer: Tokenizer | PretrainedTokenizer, chat: Chat,
        renderer: Renderer, limits: Limits,
    ):
        self.session = session
        self.tokenizer = tokenizer
        self.chat = chat
        self.renderer = renderer
        self.limits = limits
        self.counts = dict.fromkeys(
            ("malformed", "fallbacks", "full", "joined", "continued", "rendered",
             "prompt_tokens", "fed_tokens", "written_tokens"), 0)

    def count(self, answer: Answer) -> None:
        """Adds what an answer cost."""
        for name, value in (("prompt_tokens", len(answer.prompt)), ("fed_tokens", answer.fed),
                            ("written_tokens", answer.written)):
            self.counts[name] += value

    def listener(
        self, stop: Sequence[str], tell: Callable[[str], None] | None
    ) -> Callable[[list[int]], bool]:
        """Hears a turn in the session's thread; ends it at a stop text."""
        loop = asyncio.get_running_loop()

        def hear(ids: list[int]) -> bool:
            text = plain(self.tokenizer.decode(ids))
            cut = cut_at(text, stop)
            if tell and not loop.is_closed():
                loop.call_soon_threadsafe(tell, shown(text if cut is None else cut, stop))
            return cut is not None

        return hear

    async def ask(self, ask: Ask, listener: Listener | None) -> Written:
        """The turn. Raises RuntimeError where the engine fails twice, or has stopped."""
        try:
            return await asyncio.wrap_future(self.session.ask(ask, listener))
        except RuntimeError:
            if not self.session.alive:
                raise
            # The device failed while others wrote too; once more, alone with what was asked.
            return await asyncio.wrap_future(self.session.ask(ask, listener))

@dataclasses.dataclass(frozen=True)
class Start:
    """Where a turn begins: what the policy has in its context, and what came since `before`."""

    before: Node | None
    context: list[int]
    pieces: list[Piece]
    thoughts: tuple[Thought, ...] = ()
    dropped: int = 0
    row: int = -1


def going_on(writer: Writer, node: Node, messages: Sequence[Message]) -> Start:
    """Behind a node, with what was said since; thoughts leave the context as in training."""
    old, thoughts, dropped = node.context.tolist(), node.thoughts, node.dropped
    alone = writer.limits.reasoning == "dropped" or not messages or messages[0].role != "tool"
    leaving = [t for t in thoughts if alone or not t.thinks]
    if leaving:
        # As the engine counts: all behind the first that leaves is read again.
        dropped += len(old) - leaving[0].start
        stays = []
        for place, thought in enumerate(thoughts):
            gone = sum(t.count for t in leaving if t.start < thought.start)
            if thought not in leaving:
                stays.append(dataclasses.replace(thoughts[place], start=thought.start - gone))
        for thought in reversed(leaving):
            del old[thought.start : thought.start + thought.count]
        thoughts = tuple(stays)
    context = writer.renderer.following(old, messages)
    if context[: len(old)] != old:  # an end token has given way to the markup that holds one
        return Start(None, context, [Piece(np.array(context, np.int32))], (), dropped, node.row)
    fresh = Piece(np.array(context[len(old) :], np.int32))
    return Start(node, context, [fresh], thoughts, dropped, node.row)


class Turn:
    """One answer in the making: attempts until one can be read."""

    def __init__(
        self, writer: Writer, request: ChatRequest, start: Start, grammar: Grammar | None,
        emit: Emit | None,
    ):
        self._writer = writer
        self._request = request
        self._grammar = grammar
        self._emit = emit
        self._before, self._row, self._dropped = start.before, start.row, start.dropped
        self._context, self._thoughts = list(start.context), start.thoughts
        self._pieces = list(start.pieces)
        self._prompt = list(start.context)
        self._told = ("", "")  # (reasoning, content) that the client has
        self._sent = ""  # content of earlier attempts, which it has too
        self._fed = self._cached = self._written = self._attempts = 0
        self._first = 0  # tokens that each attempt is given to begin with

    async def written(self, seed: int) -> Answer:
        """The answer. Raises RuntimeError where the engine fails."""
        w, options, names = self._writer, self._request.options, self._request.names
        chat, limits, must_call = w.chat, w.limits, self._request.must_call
        begun = list(w.tokenizer.encode_markup("<tool_call>\n")) if must_call else []
        first = [*chat.begin, *begun]
        self._first = len(first)
        while self._attempts < ATTEMPTS:
            limit = min(options.limit or limits.turn, limits.turn)
            if limit > limits.context - len(self._context) - len(first):
                w.counts["full"] += 1
                return self._forced(Message("assistant", CLOSING), "length")
            ask = Ask(self._context + first, seed, options.sampling, limit, self._grammar,
                      len(begun), self._dropped, self._row)
            listener = None
            if options.stop or self._emit:
                tell = self._tell if self._emit and not must_call else None
                listener = w.listener(options.stop, tell)
            written = await w.ask(ask, listener)
            self._row = written.row
            if not self._attempts:
                self._cached = min(len(ask.tokens) - written.fed, len(self._prompt))
            self._attempts += 1
            self._fed += written.fed
            self._written += len(written.turn.ids)
            ids = first + written.turn.ids
            log_probs = [0.0] * len(first) + written.turn.log_probs
            said, _ = chat.read(begun + written.turn.ids)
            heard = plain(said.message) or spoken(said.unheard)
            cut = None if said.calls else cut_at(heard, options.stop)
            done = functools.partial(self._done, ids, log_probs, plain(said.thought))
            if cut is not None and not must_call:
                return done(cut, (), "stop")
            if said.calls and all(call.name in names for call in said.calls):
                calls = said.calls if self._request.parallel else said.calls[:1]
                return done("", tuple(_called(c.name, dict(c.kwargs)) for c in calls), "tool_calls")
            if said.message and not must_call:
                return done(plain(said.message), (), "stop")
            ended = ids[-1] in chat.stop_ids
            asked = options.limit is not None and options.limit <= limits.turn
            if not ended and heard and not must_call and (asked or self._emit):
                # The client's own limit, or words that it has already read: no second attempt.
                return done(heard, (), "length")
            w.counts["malformed"] += 1
            self._sent = _joined(self._sent, self._told[1])
            self._told = ("", "")
            self._again(ids, log_probs, said.problem or "call one of your tools")
        w.counts["fallbacks"] += 1
        if must_call:
            return self._forced(Message("assistant", "", (_called(names[0], {}),)), "tool_calls")
        return self._forced(Message("assistant", SHORT), "stop")

    def _tell(self, text: str) -> None:
        """Passes on what of an unfinished turn is surely said."""
        assert self._emit is not None
        begin = self._writer.tokenizer.decode(list(self._writer.chat.begin))
        read = read_turn(begin + text, ended=False)
        old, before = self._told
        thought, said = read.thought, spoken(read.unheard)
        told = (thought if thought.startswith(old) else old,
                said if said.startswith(before) else before)
        if told != self._told:
            self._told = told
            self._emit(told[0], _joined(self._sent, told[1]))

    def _again(self, ids: list[int], log_probs: list[float], reason: str) -> None:
        """What is said to a turn that was none, as in training."""
        self._add(ids, log_probs)
        error = [Message("tool", f"Error: {reason}")]
        start = going_on(self._writer, self._node(), error)
        self._context, self._thoughts, self._dropped = start.context, start.thoughts, start.dropped
        self._pieces += start.pieces

    def _add(self, ids: list[int], log_probs: list[float]) -> None:
        chat = self._writer.chat
        count = chat.reasoning(ids) if self._writer.limits.reasoning != "kept" else 0
        if count:
            thinks = bool(chat.read(ids[len(chat.begin) :])[0].thought)
            self._thoughts = (*self._thoughts, Thought(len(self._context), count, thinks))
        drawn = np.array(log_probs, np.float32)
        self._pieces.append(Piece(np.array(ids, np.int32), drawn, self._first))
        self._context = self._context + ids

    def _done(
        self, ids: list[int], log_probs: list[float], reasoning: str, content: str,
        calls: tuple[ToolCall, ...], finish: str,
    ) -> Answer:
        self._add(ids, log_probs)
        first = len(self._writer.chat.begin)
        return self._answer(_joined(self._sent, content), reasoning, calls, finish, ids[first:],
                            log_probs[first:])

    def _forced(self, message: Message, finish: str) -> Answer:
        """An answer that the policy did not write."""
        rendered = self._writer.renderer.agent(message)
        self._pieces.append(Piece(np.array(rendered, np.int32)))
        self._context = self._context + rendered
        content = _joined(self._sent, message.content)
        return self._answer(content, "", message.calls, finish, [], [])

    def _answer(
        self, content: str, reasoning: str, calls: tuple[ToolCall, ...], finish: str,
        ids: list[int], log_probs: list[float],
    ) -> Answer:
        return Answer(content, reasoning, calls, finish, ids, log_probs, self._prompt, self._fed,
                      self._written, self._attempts, self._node(), self._cached)

    def _node(self) -> Node:
        return Node(self._before, tuple(self._pieces), self._dropped, self._row,
                    np.array(self._context, np.int32), self._thoughts)


def spoken(text: str) -> str:
    """What of an unfinished turn, behind its reasoning, is said to the user."""
    for tag in ("<think>", "<tool_call>"):
        text = text.split(tag, 1)[0]
    return plain(text.replace("</tool_call>", "")).strip()


def _called(name: str, arguments: dict[str, Any]) -> ToolCall:
    return ToolCall(f"call_{secrets.token_hex(12)}", name, arguments)


def cut_at(text: str, stop: Sequence[str]) -> str | None:
    """The text before the first stop text; None where there is none."""
    places = [place for s in stop if (place := text.find(s)) >= 0]
    return text[: min(places)].strip() if places else None


def shown(text: str, stop: Sequence[str]) -> str:
    """Without an end that may turn out to be half a character, markup, or a stop text."""
    text = text.rstrip("\ufffd")
    for whole in ("<tool_call>", "<think>", "</think>", *stop):
        for length in range(min(len(whole) - 1, len(text)), 0, -1):
            if text.endswith(whole[:length]):
                return text[:-length]
    return text


def _joined(first: str, second: str) -> str:
    return f"{first}\n\n{second}" if first and second else first or second
