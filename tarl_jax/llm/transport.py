"""One request over the wire, with the `openai` client, that ends when it must.

The client runs in an event loop of its own thread: a request that is cancelled there ends at once
and takes its connection with it, even where the server keeps sending a byte now and then, which no
timeout of a socket would end.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import email.utils
import json
import os
import threading
import time
from collections.abc import Mapping
from typing import Any

from tarl_jax.config import LLMConfig
from tarl_jax.llm.errors import LLMError

OPENAI = "https://api.openai.com/v1"
_SHOWN = 300  # characters of a server's answer in an error


@dataclasses.dataclass(frozen=True)
class Completion:
    """text: the answer; tokens: as the server counts them, 0 where it does not."""

    text: str
    prompt_tokens: int = 0
    completion_tokens: int = 0


def require_key(config: LLMConfig, prefix: str) -> str:
    """The key that `config` names. Raises LLMError("setup") where its variable is not set."""
    if not config.api_key_env:
        return "none"  # the client insists on one
    key = os.environ.get(config.api_key_env, "")
    if not key:
        raise LLMError(
            "setup",
            f"the environment variable {config.api_key_env} is not set: export the key of"
            f" {config.model}, or say config.{prefix}.api_key_env='' for a server that needs none",
        )
    return key


class Transport:
    """Sends requests from any thread. Raises LLMError("setup") without a key or the client."""

    def __init__(self, config: LLMConfig, prefix: str):
        try:
            import openai
        except ImportError as error:
            raise LLMError(
                "setup", f"outside language models need more packages ({error}):"
                " pip install 'tarl-jax[llm]'"
            ) from None
        self._openai = openai
        self._prefix = prefix
        self._key = require_key(config, prefix)
        self._where = f"{config.model} at {config.base_url or OPENAI}"
        self._client = openai.AsyncOpenAI(
            api_key=self._key, base_url=config.base_url or OPENAI, max_retries=0
        )
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="llm", daemon=True)
        self._thread.start()

    def send(self, body: Mapping[str, Any], seconds: float) -> Completion:
        """The server's answer, within `seconds`. Raises LLMError."""
        answer = asyncio.run_coroutine_threadsafe(self._send(body, seconds), self._loop)
        try:
            return self._read(answer.result())
        except concurrent.futures.CancelledError:
            raise LLMError("setup", f"{self._where}: the connection was closed") from None

    def close(self) -> None:
        """Ends what is under way."""
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _close(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._client.close()
        await self._loop.shutdown_default_executor()  # it has looked up the server's name

    async def _send(self, body: Mapping[str, Any], seconds: float) -> bytes:
        openai = self._openai
        # No error is chained: a server may repeat the key in its answer.
        try:
            async with asyncio.timeout(seconds):
                # Raw, because the client takes any text for a completion.
                raw = await self._client.chat.completions.with_raw_response.create(
                    **body, timeout=seconds
                )
                return raw.http_response.content
        except (TimeoutError, openai.APITimeoutError):
            raise self._error("timeout", f"no answer within {seconds:.3g} s") from None
        except openai.APIStatusError as error:
            raise self._refusal(error) from None
        except openai.APIConnectionError as error:
            reason = f"{error} ({type(error.__cause__).__name__})"
            raise self._error("connection", reason) from None
        except openai.OpenAIError as error:
            raise self._error("malformed", str(error)) from None
    def _read(self, content: bytes) -> Completion:
        """The completion that a body holds; a body of anything else is malformed."""
        try:
            found = json.loads(content)
            text = found["choices"][0]["message"]["content"]
        except (ValueError, RecursionError, KeyError, IndexError, TypeError):
            text = None
        if not isinstance(text, str) or not text.strip():
            shown = content.decode("utf-8", "replace")
            raise self._error("malformed", f"the answer is no completion with a text: {shown!r}")
        usage = found.get("usage")
        counts = usage if isinstance(usage, dict) else {}
        prompt, completion = (
            n if isinstance(n := counts.get(name), int) and n > 0 else 0
            for name in ("prompt_tokens", "completion_tokens")
        )
        return Completion(text, prompt, completion)

    def _refusal(self, error: Any) -> LLMError:
        """What an HTTP status other than 200 means."""
        status, text = error.status_code, str(error)
        wait = _retry_after(error.response.headers)
        prefix = f"config.{self._prefix}"
        if status == 429 and "insufficient_quota" in text:
            return self._error("quota", f"{text}; the account has nothing left")
        if status == 429:
            return self._error("rate_limited", f"{text}; lower {prefix}.requests_per_minute,"
                               f" {prefix}.tokens_per_minute or {prefix}.max_in_flight", wait)
        if status >= 500:
            return self._error("server_error", text, wait)
        if status == 408:
            return self._error("timeout", text)
        if status in (401, 403):
            return self._error("unauthorized", f"{text}; look at the key, whose variable is"
                               f" {prefix}.api_key_env")
        if status == 404:
            return self._error(
                "not_found", f"{text}; look at {prefix}.model and {prefix}.base_url, which should"
                " end where /chat/completions begins"
            )
        return self._error("bad_request", f"{text}; the server takes no such request: it may not"
                           f" know a field (leave one out by {prefix}.temperature=-1,"
                           f" {prefix}.max_tokens=0), or the dialogue is too long for it")

    def _error(self, kind: str, reason: str, retry_after: float | None = None) -> LLMError:
        if self._key != "none":
            reason = reason.replace(self._key, "***")
        if len(reason) > 2 * _SHOWN:  # the server's words come first, the remedy last
            reason = f"{reason[:_SHOWN]} … {reason[-_SHOWN:]}"
        return LLMError(kind, f"{self._where}: {reason}", retry_after)


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that a Retry-After header asks for, as a number or a date."""
    value = headers.get("retry-after", "")
    with contextlib.suppress(ValueError):
        return max(float(value), 0.0)
    with contextlib.suppress(ValueError, TypeError):
        return max(email.utils.parsedate_to_datetime(value).timestamp() - time.time(), 0.0)
    return None
