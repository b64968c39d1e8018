"""Calls to a language model over the OpenAI protocol, from many threads, that end and are counted.

Answers come from the recording or the cache where they are there. What is sent is limited in
number, rate and cost; what fails is tried again where that can help; everything is in the ledger.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Any, Protocol, Self

from tarl_jax.config import LLMConfig
from tarl_jax.config.plain import dumps, plain
from tarl_jax.llm import formats
from tarl_jax.llm.attempts import attempts
from tarl_jax.llm.errors import FAULTS, LLMError
from tarl_jax.llm.ledger import Ledger
from tarl_jax.llm.limits import Budget, RateLimit
from tarl_jax.llm.store import Cache, Recording, digest
from tarl_jax.llm.transport import Completion, Transport, require_key

_CHARACTERS_PER_TOKEN = 4  # to guess the size of a request before it is sent

Message = Mapping[str, Any]


class Answers(Protocol):
    """Keeps answers by the digest of their request, for a caller who may come again."""

    def get(self, name: str) -> dict[str, Any] | None: ...

    def put(self, name: str, answer: dict[str, Any]) -> None: ...


class ChatService:
    """One model for a whole run. Safe to share between threads; close it at the end.

    prefix: where its config stands ("user.llm"), for errors.
    Raises ValueError or FileNotFoundError for a recording that cannot be used.
    """

    def __init__(self, config: LLMConfig, prefix: str):
        self.config = config
        self.ledger = Ledger()
        self._prefix = prefix
        self._rate = RateLimit(config.requests_per_minute, config.tokens_per_minute)
        self._budget = Budget(config.max_calls, config.max_usd, prefix)
        self._slots = threading.BoundedSemaphore(config.max_in_flight)
        self._cache = Cache(config.cache_dir) if config.cache_dir else None
        self._replay = Recording(config.replay, write=False) if config.replay else None
        self._record = Recording(config.record, write=True) if config.record else None
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._under_way: dict[str, Future[Completion]] = {}
        self._transport: Transport | None = None
        self._format = config.response_format  # the one that the server is known to take

    def check(self) -> None:
        """Raises LLMError("setup") where nothing could be sent, so that a run says so at once."""
        if self._replay is None:
            require_key(self.config, self._prefix)
            self._connected()

    def complete(
        self,
        messages: Sequence[Message],
        *,
        key: str = "",
        schema: Mapping[str, Any] | None = None,
        require_fit: bool = True,
        deadline: float | None = None,
        tools: Sequence[Mapping[str, Any]] = (),
        kept: Answers | None = None,
    ) -> Completion:
        """Asks for the next message of a chat; blocks until it is there.

        Equal requests with equal keys that threads make at once are sent once; a recording or a
        cache remembers the answer for longer.

        Args:
          messages: {"role", "content"} in order, or as the protocol has calls of tools and their
            answers.
          key: tells apart equal requests that should be answered apart, such as those of two
            episodes of a task; never sent.
          schema: JSON schema that the answer must fit; one that does not is asked for again.
          require_fit: False leaves it to the caller to look whether the answer fits, and so to ask
            again in words that say what is wrong.
          deadline: `time.monotonic()` after which it gives up.
          tools: OpenAI function schemas of what the model may call.
          kept: answers from it what it has, and adds what it has not.
        Raises: LLMError, of the kinds named there.
        """
        body = self._body(messages, schema, tools)
        name = digest({**body, "key": key})
        with self._lock:
            other = self._under_way.get(name)
            mine = self._under_way.setdefault(name, Future())
        self.ledger.add(calls=1)
        try:
            if other is not None:
                completion = other.result()  # it ends, as every request does
                self.ledger.add(cache_hits=1)
            else:
                completion = self._answer(
                    name, {**body, "key": key}, body, schema if require_fit else None, deadline,
                    kept,
                )
                mine.set_result(completion)
            return completion
        except BaseException as error:
            self.ledger.add(failed=1)
            if other is None:
                mine.set_exception(error)
            raise
        finally:
            if other is None:
                with self._lock:
                    del self._under_way[name]

    def close(self) -> None:
        """Ends what is under way or waits, and closes the files; nothing can be asked any more."""
        if self._closed.is_set():
            return
        self._closed.set()
        for part in (self._transport, self._cache, self._record):
            if part is not None:
                part.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _body(
        self, messages: Sequence[Message], schema: Mapping[str, Any] | None,
        tools: Sequence[Mapping[str, Any]],
    ) -> dict[str, Any]:
        config = self.config
        body: dict[str, Any] = {"model": config.model, "messages": [
            {name: plain(part) if isinstance(part, str) else part for name, part in m.items()}
            for m in messages
        ]}
        if tools:
            body["tools"] = list(tools)
        if config.temperature >= 0:
            body["temperature"] = config.temperature
        if config.max_tokens:
            body["max_tokens"] = config.max_tokens
        if schema is not None and config.response_format != "none":
            body["response_format"] = formats.asked(config.response_format, schema)
        return body

    def _answer(
        self, name: str, request: Mapping[str, Any], body: Mapping[str, Any],
        schema: Mapping[str, Any] | None, deadline: float | None, kept: Answers | None,
    ) -> Completion:
        """From the recording, what the caller or the cache has kept, or the server."""
        recording = self._replay or self._record
        outcome = recording.get(name) if recording else None
        if outcome is not None:
            self.ledger.add(replayed=1)
            if "error" in outcome:
                raise LLMError(**outcome["error"])
            return Completion(**outcome["answer"])
        if self._replay:
            raise LLMError(
                "not_recorded",
                f"{self._replay.path}: holds no answer to this request (key {request['key']!r},"
                f" last message {request['messages'][-1]['content'][:80]!r}); replay it with the"
                " config, code and devices that it was recorded with",
            )
        found = kept.get(name) if kept else None
        if found is None and self._cache:
            found = self._cache.get(name)
        if found is not None:
            self.ledger.add(cache_hits=1)
            completion = Completion(**found)
        else:
            completion = self._asked(name, request, body, schema, deadline)
        answer = {n: v for n, v in dataclasses.asdict(completion).items()
                  if n != "problem" and (v or n != "calls")}
        if kept and found is None:
            kept.put(name, answer)
        if self._cache and found is None:
            self._cache.put(name, answer)
        if self._record:
            self._record.put(name, request, {"answer": answer})
        return completion

    def _asked(
        self, name: str, request: Mapping[str, Any], body: Mapping[str, Any],
        schema: Mapping[str, Any] | None, deadline: float | None,
    ) -> Completion:
        """From the server, in as many attempts as it may take; a failure is recorded too."""
        def pause(seconds: float) -> None:
            self.ledger.add(seconds_waiting=seconds)
            self._closed.wait(seconds)

        trying = attempts(self.config, pause, deadline)
        try:
            return trying(self._attempt, body, schema, deadline)
        except LLMError as error:
            if error.fatal:
                raise
            tried = trying.statistics["attempt_number"]
            message = f"{error} (gave up after attempt {tried} of {self.config.max_attempts})"
            if self._record:
                outcome = {"kind": error.kind, "message": message}
                self._record.put(name, request, {"error": outcome})
            raise LLMError(error.kind, message) from None

    def _attempt(
        self, body: Mapping[str, Any], schema: Mapping[str, Any] | None, deadline: float | None
    ) -> Completion:
        """One request, or more where the server does not know how JSON is asked for.

        Raises LLMError.
        """
        while True:
            with self._lock:
                sent = formats.lowered(body, self._format)
            try:
                return self._request(sent, schema, deadline)
            except LLMError as error:
                lower = formats.after(error, sent)
                if lower is None:
                    raise
                with self._lock:
                    self._format = lower

    def _request(
        self, body: Mapping[str, Any], schema: Mapping[str, Any] | None, deadline: float | None
    ) -> Completion:
        """One request, within every limit. Raises LLMError."""
        config, begun = self.config, time.monotonic()
        tokens = len(dumps(body)) / _CHARACTERS_PER_TOKEN
        with self._slot(deadline):
            place = self._rate.book(tokens + config.max_tokens, deadline)
            self._closed.wait(max(place[0] - time.monotonic(), 0.0))
            transport = self._connected()
            sent = time.monotonic()
            self.ledger.add(seconds_waiting=sent - begun)
            seconds = config.timeout_seconds
            if deadline is not None:
                seconds = min(seconds, deadline - sent)
            if seconds <= 0:
                raise LLMError("deadline", f"{config.model}: no time is left for the call")
            reserved = self._usd(tokens, config.max_tokens)
            self._budget.reserve(reserved)
            self.ledger.add(requests=1)
            usd = 0.0
            try:
                completion = transport.send(body, seconds)
                used = (completion.prompt_tokens, completion.completion_tokens)
                usd = self._usd(*used)
                self.ledger.add(prompt_tokens=used[0], completion_tokens=used[1], usd=usd)
                self._rate.settle(place, sum(used) or tokens)
                if completion.problem:
                    raise LLMError("malformed", completion.problem)
                if schema is not None:
                    formats.require_fit(completion.text, schema, config.model)
            except LLMError as error:
                kind = f"faults_{error.kind}" if error.kind in FAULTS else "refused"
                self.ledger.add(**{kind: 1})
                raise
            finally:
                self._budget.settle(reserved, usd)
                self.ledger.add(seconds_asking=time.monotonic() - sent)
            return completion

    @contextlib.contextmanager
    def _slot(self, deadline: float | None) -> Any:
        """A place among the requests in flight."""
        left = None if deadline is None else max(deadline - time.monotonic(), 0.0)
        if not self._slots.acquire(timeout=left):
            raise LLMError(
                "deadline", f"{self.config.model}: config.{self._prefix}.max_in_flight ="
                f" {self.config.max_in_flight} requests were in flight all the time it had"
            )
        try:
            yield
        finally:
            self._slots.release()

    def _connected(self) -> Transport:
        with self._lock:
            if self._closed.is_set():
                raise LLMError("setup", f"{self.config.model}: the service is closed")
            if self._transport is None:
                self._transport = Transport(self.config, self._prefix)
            return self._transport

    def _usd(self, prompt_tokens: float, completion_tokens: float) -> float:
        config = self.config
        return (
            prompt_tokens * config.usd_per_million_input
            + completion_tokens * config.usd_per_million_output
        ) / 1e6
