"""Answers that no client has to throw away: from a request to a turn of the policy.

A turn that is neither a message nor a call of the request's own tools is answered inside, as in
training, and written again; at the last there is a short text. A conversation that has filled the
context gets a closing message. What the policy thinks stays apart from what it says.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import OrderedDict
from collections.abc import Sequence

import jax
import numpy as np
from jinja2 import TemplateError

from tarl_jax.config.plain import plain
from tarl_jax.rollout.grammar import Grammar, build
from tarl_jax.rollout.session import Ask
from tarl_jax.serve.conversations import Conversations, Piece, further, keys_of
from tarl_jax.serve.requests import ChatRequest, CompletionRequest, Message, Options, Refused
from tarl_jax.serve.turns import Answer, Emit, Start, Turn, Writer, cut_at, going_on

MAX_GRAMMARS = 32  # lists of tools whose grammar is kept
GRAMMAR_BYTES = 256 << 20  # of those grammars together
KEPT_SECONDS = 600.0  # that an answer whose client has gone waits for it to ask again
MAX_KEPT = 256  # such answers


class Answers:
    """Knows conversations, and who asks; lives in one event loop.

    Attributes:
      counts: what happened, for metrics.
    """

    def __init__(self, writer: Writer, vocab_size: int):
        self._writer = writer
        self._vocab_size = vocab_size
        self.conversations = Conversations()
        self._running: OrderedDict[str, tuple[asyncio.Task[Answer], float]] = OrderedDict()
        self._listeners: dict[asyncio.Task[Answer], int] = {}
        self._grammars: OrderedDict[tuple[str, ...], asyncio.Future[Grammar]] = OrderedDict()
        self.counts = writer.counts

    async def chat(
        self, request: ChatRequest, emit: Emit | None = None, resent: bool = False,
        scope: str = "",
    ) -> Answer:
        """The answer; a request that was sent before joins the running one.

        resent: whether the client says that it sends it again.
        scope: of its conversation, as in `keys_of`.
        """
        options, key = request.options, f"{scope} {request.options.key}"
        self._tidy()
        fixed = options.seed is not None or options.sampling.temperature == 0
        task, _ = self._running.get(key, (None, 0.0))
        if task is not None and emit is None and (
            (fixed and not task.done()) or resent or not self._listeners.get(task)
        ):
            self.counts["joined"] += 1
        else:
            task = asyncio.create_task(self._answer(request, emit, scope))
            self._running[key] = task, time.monotonic()
        self._listeners[task] = self._listeners.get(task, 0) + 1
        answered = False
        try:
            # A client that goes away does not take the answer from others, nor from itself.
            answer = await asyncio.shield(task)
            answered = True
            return answer
        finally:
            self._listeners[task] -= 1
            if not self._listeners[task]:
                del self._listeners[task]
                if (answered or task.done()) and self._running.get(key, (None,))[0] is task:
                    del self._running[key]

    async def complete(self, request: CompletionRequest, emit: Emit | None = None) -> list[Answer]:
        """Answers to plain prompts, in order; nothing is rendered, read or refused."""
        return list(await asyncio.gather(*(
            self._completion(request.options, prompt, emit) for prompt in request.prompts
        )))

    # ---- one chat answer ---------------------------------------------------------------------

    async def _answer(self, request: ChatRequest, emit: Emit | None, scope: str) -> Answer:
        options, messages, tools = request.options, request.messages, request.tools
        keys = keys_of(messages, tools, scope)
        before, count = self.conversations.find(messages, keys)
        self.counts["rendered" if before is None else "continued"] += 1
        if before is None:
            context = self._opening(request)
            start = Start(None, context, [Piece(np.array(context, np.int32))])
        else:
            start = going_on(self._writer, before, messages[count:])
        grammar = None
        if self._writer.limits.constrain:
            grammar = await self._grammar(request.names)
        seed = options.seed if options.seed is not None else secrets.randbits(32)
        answer = await Turn(self._writer, request, start, grammar, emit).written(seed)
        self._writer.count(answer)
        assert answer.node is not None
        reply = Message("assistant", answer.content, answer.calls)
        self.conversations.add(further(keys[-1], reply), answer.node)
        return answer

    def _opening(self, request: ChatRequest) -> list[int]:
        try:
            return self._writer.renderer.opening(request.messages, request.tools)
        except (TypeError, ValueError, LookupError, TemplateError) as error:
            # The checkpoint's own template; what it takes of tools is for it to say.
            raise Refused(400, f"the chat template does not take this: {error}") from None

    async def _grammar(self, names: tuple[str, ...]) -> Grammar:
        """Of turns that may call these tools; made once, beside the loop. Raises Refused."""
        made = self._grammars.get(names)
        if made is None:
            made = self._grammars[names] = asyncio.ensure_future(
                asyncio.to_thread(build, self._writer.tokenizer, names, self._vocab_size,
                                  self._writer.chat.begin)
            )
            made.add_done_callback(self._forget_grammars)
        self._grammars.move_to_end(names)
        try:
            return await asyncio.shield(made)
        except ValueError as error:
            raise Refused(400, f"these tools cannot be called here: {error}") from None

    def _forget_grammars(self, _: asyncio.Future[Grammar]) -> None:
        """Those longest unused; rows that follow one keep it."""
        held = [sum(np.asarray(part).nbytes for part in jax.tree.leaves(made.result()))
                if made.done() and not made.cancelled() and not made.exception() else 0
                for made in self._grammars.values()]
        while len(held) > 1 and (len(held) > MAX_GRAMMARS or sum(held) > GRAMMAR_BYTES):
            del held[0]
            self._grammars.popitem(last=False)

    async def _completion(
        self, options: Options, prompt: str | Sequence[int], emit: Emit | None
    ) -> Answer:
        ids = self._writer.tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)
        room = self._writer.limits.context - len(ids)
        limit = min(options.limit or self._writer.limits.turn, room)
        if room < 1 or not ids:
            self.counts["full"] += room < 1
            return Answer("", "", (), "length", [], [], ids, 0, 0, 0)
        seed = options.seed if options.seed is not None else secrets.randbits(32)
        listener = None
        if emit or options.stop:
            listener = self._writer.listener(options.stop, emit and (lambda text: emit("", text)))
        written = await self._writer.ask(Ask(ids, seed, options.sampling, limit), listener)
        turn = written.turn
        ended = turn.ids[-1] in self._writer.chat.stop_ids
        text = plain(self._writer.tokenizer.decode(turn.ids[:-1] if ended else turn.ids))
        cut = cut_at(text, options.stop)
        finish = "stop" if ended or cut is not None else "length"
        answer = Answer(text if cut is None else cut, "", (), finish, turn.ids, turn.log_probs, ids,
                        written.fed, len(turn.ids), 1, None, len(ids) - written.fed)
        self._writer.count(answer)
        return answer

    def _tidy(self) -> None:
        """Forgets answers whose clients did not come back for them."""
        done = [(key, begun) for key, (task, begun) in self._running.items() if task.done()]
        for place, (key, begun) in enumerate(done):
            if place < len(done) - MAX_KEPT or time.monotonic() - begun > KEPT_SECONDS:
                del self._running[key]
