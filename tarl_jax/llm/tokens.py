"""Completions of token ids, from a server of the OpenAI protocol that gives ids back.

vLLM (`return_token_ids`), `tarl_jax.serve`, and whatever else answers `/completions` with each
choice's `token_ids` and `logprobs.token_logprobs`.
"""

from __future__ import annotations

import dataclasses
import math
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from tarl_jax.config import LLMConfig
from tarl_jax.llm.attempts import attempts
from tarl_jax.llm.errors import LLMError
from tarl_jax.llm.transport import Transport


@dataclasses.dataclass(frozen=True)
class Continuation:
    """What a server wrote behind some tokens.

    ids: the end token included, where it wrote one. log_probs: of each, as the server has them.
    """

    ids: list[int]
    log_probs: list[float]


class TokenService:
    """Safe to share between threads; close it at the end. Nothing is asked before it is used.

    prefix: where its config stands, for errors. vocab_size: ids are below it.
    Raises LLMError("setup") without a key or the client.
    """

    def __init__(self, config: LLMConfig, prefix: str, vocab_size: int):
        self._config = config
        self._prefix = prefix
        self._vocab_size = vocab_size
        self._slots = threading.BoundedSemaphore(config.max_in_flight)
        self._closed = threading.Event()
        self._transport = Transport(config, prefix)

    def complete(self, prompt: Sequence[int], fields: Mapping[str, Any]) -> Continuation:
        """What the server writes behind the prompt.

        fields: of the protocol, such as "max_tokens"; beside model, prompt and what asks for ids
          and log-probs.
        Raises LLMError, "setup" where the server gives no ids or log-probs.
        """
        body = {
            "model": self._config.model, "prompt": list(prompt), **fields,
            "logprobs": 1, "return_token_ids": True,
        }
        return self._try(lambda: self._read(body, self._post("/completions", body)))

    def post(self, path: str, body: Mapping[str, Any], seconds: float) -> None:
        """Posts to a path behind the server's name, or to an address, until it is taken.

        Raises LLMError; also where the answer says "success": false.
        """
        if path.startswith("/"):
            server = "/".join(self._config.base_url.split("/")[:3])
            path = f"{server}{path}"
        found = self._try(lambda: self._transport.post(path, body, seconds))
        if found and found.get("success") is False:
            said = str(found.get("message") or found)[:300]
            raise LLMError("setup", f"{path}: the server did not take it: {said}")

    def close(self) -> None:
        """Ends what is under way or waits."""
        if not self._closed.is_set():
            self._closed.set()
            self._transport.close()

    def _post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any] | None:
        with self._slots:
            return self._transport.post(path, body, self._config.timeout_seconds)

    def _try(self, work: Any) -> Any:
        def pause(seconds: float) -> None:
            self._closed.wait(seconds)

        def unless_closed() -> Any:
            if self._closed.is_set():
                raise LLMError("setup", f"{self._config.model}: the service is closed")
            return work()

        trying = attempts(self._config, pause)
        try:
            return trying(unless_closed)
        except LLMError as error:
            if error.fatal:
                raise
            tried = trying.statistics["attempt_number"]
            raise LLMError(
                error.kind,
                f"{error} (gave up after attempt {tried} of {self._config.max_attempts})",
            ) from None

    def _read(self, body: Mapping[str, Any], found: Any) -> Continuation:
        where = f"{self._config.model} at {self._config.base_url}"
        try:
            choice = found["choices"][0]
            ids, held = choice.get("token_ids"), choice.get("logprobs") or {}
            log_probs = held.get("token_logprobs")
        except (KeyError, IndexError, TypeError, AttributeError):
            raise LLMError("malformed", f"{where}: the answer is no completion:"
                           f" {str(found)[:300]}") from None
        if not isinstance(ids, list) or not isinstance(log_probs, list):
            raise LLMError(
                "setup", f"{where}: the answer has no token_ids or no logprobs.token_logprobs, so"
                " nothing can be learned from it; use a server that takes return_token_ids (vLLM),"
                f" or leave config.{self._prefix}.base_url empty"
            )
        wrong = next((i for i in ids if type(i) is not int or not 0 <= i < self._vocab_size), None)
        if wrong is not None:
            raise LLMError("setup", f"{where}: {wrong!r} is no token id of the policy, which has"
                           f" {self._vocab_size}: the server has another model")
        given = choice.get("prompt_token_ids")
        if isinstance(given, list) and given != body["prompt"]:
            raise LLMError("setup", f"{where}: it read {len(given)} tokens of another prompt than"
                           f" the {len(body['prompt'])} that were sent")
        numbers = all(isinstance(p, int | float) and math.isfinite(p) for p in log_probs)
        if not ids or len(ids) != len(log_probs) or not numbers:
            raise LLMError("malformed", f"{where}: {len(ids)} token ids and {len(log_probs)}"
                           " log-probs, or some that are no numbers")
        return Continuation(ids, [float(p) for p in log_probs])
