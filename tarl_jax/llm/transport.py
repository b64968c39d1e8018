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
import ipaddress
import math
import threading
import time
import urllib.request
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from tarl_jax.config import LLMConfig
from tarl_jax.config.plain import loads, plain
from tarl_jax.config.servers import key_in, masked
from tarl_jax.llm.errors import LLMError
from tarl_jax.llm.statuses import kind_of

OPENAI = "https://api.openai.com/v1"
MAX_BYTES = 16 << 20  # of one answer; what is longer is read no further
_SHOWN = 300  # characters of a server's answer in an error
# How an answer ends that is not a whole one, and what helps.
_CUT = {
    "length": "is cut off at its limit of tokens; raise config.{prefix}.max_tokens, which the"
              " model's thoughts count towards",
    "content_filter": "was cut off by the server's filter",
}


@dataclasses.dataclass(frozen=True)
class Completion:
    """text: the answer; tokens: as the server counts them, 0 where it does not.

    problem: why it is no answer to use, though its tokens are paid for; empty: it is one.
    calls: the tools that it asks for, each {"name", "arguments"}, the arguments as the model wrote
      them; beside them the text may be empty.
    """

    text: str
    prompt_tokens: int = 0
    completion_tokens: int = 0
    problem: str = ""
    calls: Sequence[Mapping[str, str]] = ()


def require_key(config: LLMConfig, prefix: str) -> str:
    """The key that `config` names. Raises LLMError("setup") where its variable is not set."""
    if not config.api_key_env:
        return "none"  # the client insists on one
    key = key_in(config.api_key_env)
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
                " pip install -e '.[llm]'"
            ) from None
        self._openai = openai
        self._prefix = prefix
        self._key = require_key(config, prefix)
        self._where = f"{config.model} at {config.base_url or OPENAI}"
        url = config.base_url or OPENAI
        self._proxy = _proxy(url)
        self._client = openai.AsyncOpenAI(
            api_key=self._key, base_url=url, max_retries=0,
            http_client=openai.DefaultAsyncHttpxClient(
                trust_env=not is_loopback(url), event_hooks={"response": [_read_bounded]}
            ),
        )
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="llm", daemon=True)
        self._thread.start()

    def send(self, body: Mapping[str, Any], seconds: float) -> Completion:
        """The server's answer, within `seconds`. Raises LLMError."""
        return self._read(self._wait(self._send(body, seconds)))

    def post(self, path: str, body: Mapping[str, Any], seconds: float) -> dict[str, Any] | None:
        """The JSON object that the server answers a path below its address with, or an address of
        its own ("https://…"), within `seconds`; None where it is something else. Raises LLMError.
        """
        content = self._wait(self._send(body, seconds, path))
        content = masked(content.decode("utf-8", "replace"), self._key).encode()
        try:
            found = loads(content)
        except ValueError:
            return None
        return found if isinstance(found, dict) else None

    def _wait(self, sending: Coroutine[Any, Any, bytes]) -> bytes:
        answer = asyncio.run_coroutine_threadsafe(sending, self._loop)
        try:
            return answer.result()
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

    async def _send(self, body: Mapping[str, Any], seconds: float, path: str = "") -> bytes:
        """path: empty: that of chat completions."""
        import httpx  # the client's own

        openai = self._openai
        # No error is chained: a server may repeat the key in its answer.
        try:
            async with asyncio.timeout(seconds):
                if path:
                    plain_answer = await self._client.post(
                        path, body=dict(body), cast_to=httpx.Response, options={"timeout": seconds}
                    )
                    return plain_answer.content
                # Raw, because the client takes any text for a completion.
                raw = await self._client.chat.completions.with_raw_response.create(
                    **body, timeout=seconds
                )
                return raw.http_response.content
        except (TimeoutError, openai.APITimeoutError):
            raise self._error("timeout", f"no answer within {seconds:.3g} s") from None
        except openai.APIStatusError as error:
            wait = _retry_after(error.response.headers)
            raise self._refusal(
                error.status_code, str(error), wait, f"{error} {error.body}"
            ) from None
        except (openai.APIConnectionError, _TooLong) as error:
            if isinstance(error, _TooLong) or isinstance(error.__cause__, _TooLong):
                reason = f"the answer is longer than {MAX_BYTES} bytes"
                raise self._error("malformed", reason) from None
            reason = f"{error} ({type(error.__cause__).__name__})"
            if self._proxy:
                reason += (f"; it was asked through the proxy {self._proxy}, which the environment"
                           " names: add the server's name to no_proxy to ask it directly")
            raise self._error("connection", reason) from None
        except openai.OpenAIError as error:
            raise self._error("malformed", str(error)) from None

    def _read(self, content: bytes) -> Completion:
        """The completion that a body holds; a body of anything else is malformed."""
        content = masked(content.decode("utf-8", "replace"), self._key).encode()
        try:
            found = loads(content)
        except ValueError:
            found = None
        refused = found.get("error") if isinstance(found, dict) else None
        if refused and not found.get("choices"):  # some servers say it with status 200
            status = refused.get("code") if isinstance(refused, dict) else None
            if isinstance(status, int) and 400 <= status <= 599:
                words = f"Error code: {status} - {refused}"
                raise self._refusal(status, words, None, words)
        text: str | None = None
        ended = refusal = None
        calls: list[dict[str, str]] = []
        try:
            choice = found["choices"][0]
            message, ended = choice["message"], choice.get("finish_reason")
            calls = _calls(message.get("tool_calls"))
            text, refusal = _text(message.get("content")), message.get("refusal")
            text = text and masked(text, self._key)  # as it may have been escaped before
        except (KeyError, IndexError, TypeError, AttributeError):
            pass
        if isinstance(ended, str) and ended in _CUT:
            problem = f"the answer {_CUT[ended].format(prefix=self._prefix)}"
        elif isinstance(refusal, str) and refusal.strip():
            problem = f"the model refuses: {refusal}"
        elif not calls and (not text or not text.strip()):
            problem = "the answer is no completion with a text"
        else:
            problem = ""
        if problem:
            shown = content[:2 * _SHOWN].decode("utf-8", "replace")
            problem = str(self._error("malformed", f"{problem}: {shown!r}"))
        usage = found.get("usage") if isinstance(found, dict) else None
        counts = usage if isinstance(usage, dict) else {}
        prompt, completion = (
            n if isinstance(n := counts.get(name), int) and n > 0 else 0
            for name in ("prompt_tokens", "completion_tokens")
        )
        return Completion(text or "", prompt, completion, problem, calls or ())

    def _refusal(self, status: int, text: str, wait: float | None, body: str) -> LLMError:
        """What an HTTP status other than 200 means, with the words that came with it."""
        kind, remedy = kind_of(status, body, f"config.{self._prefix}")
        return self._error(kind, plain(f"{text}; {remedy}" if remedy else text), wait)

    def _error(self, kind: str, reason: str, retry_after: float | None = None) -> LLMError:
        reason = masked(reason, self._key)
        if len(reason) > 2 * _SHOWN:  # the server's words come first, the remedy last
            reason = f"{reason[:_SHOWN]} … {reason[-_SHOWN:]}"
        return LLMError(kind, f"{self._where}: {reason}", retry_after)


class _TooLong(Exception):
    """More than MAX_BYTES came."""


async def _read_bounded(response: Any) -> None:
    """Reads an answer of any status, as the client's own `aread` does, up to MAX_BYTES."""
    content = bytearray()
    async for part in response.aiter_bytes():
        content += part
        if len(content) > MAX_BYTES:
            raise _TooLong
    response._content = bytes(content)


def _text(content: Any) -> str | None:
    """The text of a message's content, which may come in parts; None where there is none."""
    if isinstance(content, list):
        return "".join(part["text"] for part in content if part.get("type") in ("text", None))
    return content if isinstance(content, str) else None


def _calls(asked: Any) -> list[dict[str, str]]:
    """The functions that a message asks for."""
    functions = (call["function"] for call in asked or ())
    return [{"name": str(f["name"]), "arguments": str(f.get("arguments") or "{}")}
            for f in functions]


def is_loopback(url: str) -> bool:
    """Whether a server stands on this machine, where no proxy of the environment leads."""
    host = urlsplit(url).hostname or ""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost" or host.endswith(".localhost")


def _proxy(url: str) -> str:
    """The proxy that the environment names for a server, without user and password, or ""."""
    parts = urlsplit(url)
    proxies = urllib.request.getproxies()
    found = proxies.get(parts.scheme) or proxies.get("all") or ""
    if not found or is_loopback(url) or urllib.request.proxy_bypass(parts.hostname or ""):
        return ""
    return found.rpartition("@")[2]


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that a Retry-After header asks for, as a number or a date; None for anything else."""
    value = headers.get("retry-after", "")
    seconds = math.nan
    with contextlib.suppress(ValueError, TypeError, OverflowError):
        seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
    with contextlib.suppress(ValueError):
        seconds = float(value)
    return max(seconds, 0.0) if math.isfinite(seconds) else None
