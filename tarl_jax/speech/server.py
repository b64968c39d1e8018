"""Speech from any server with OpenAI's endpoint /v1/audio/speech."""

from __future__ import annotations

import io
import re
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from tarl_jax.config.servers import key_in, masked
from tarl_jax.llm.transport import is_loopback
from tarl_jax.speech.synthesis import (
    LEVELS,
    OWN_PITCH,
    SpeechError,
    Voice,
    check_text,
    not_installed,
    to_clip,
    whole_wav,
)

PCM_RATE = 24_000  # of response_format="pcm" at OpenAI, which has no header
_NUMBERS = re.compile(r"\b(rate|channels)\s*=\s*\"?(\d{1,6})", re.I)  # of a Content-Type
_MAX_BYTES = 64 << 20
_MAX_ERROR = 64 << 10
_SHOWN = 600  # characters of a server's words in an error


class SpeechServer:
    """Asks a server for each clip; a `Synthesiser`.

    Failures that may pass (no connection, 408, 409, 429, 5xx, no answer in time) are tried again
    `retries` times, after a growing wait. `timeout_seconds` is for one attempt, from its first byte
    to its last.
    """

    def __init__(
        self, base_url: str, model: str, *, api_key_env: str = "OPENAI_API_KEY",
        audio_format: str = "wav", pcm_rate: int = PCM_RATE, timeout_seconds: float = 30.0,
        retries: int = 3,
        wait_seconds: float = 0.5,
    ):
        try:
            import openai
            import soundfile
            import tenacity  # noqa: F401
        except (ImportError, OSError) as error:
            raise not_installed(getattr(error, "name", None) or "soundfile") from error
        self.engine = f"server {base_url} {model} {audio_format}"
        if audio_format == "pcm" and pcm_rate != PCM_RATE:
            self.engine += f" {pcm_rate}"
        self._pcm_rate = pcm_rate
        self._model, self._format = model, audio_format
        self._timeout, self._retries, self._wait = timeout_seconds, retries, wait_seconds
        self._openai, self._soundfile = openai, soundfile
        self._key = key_in(api_key_env)
        self._client = openai.OpenAI(
            base_url=base_url, api_key=self._key or "none", max_retries=0,
            timeout=timeout_seconds,
            http_client=openai.DefaultHttpxClient(
                trust_env=not is_loopback(base_url), event_hooks={"response": [self._bounded]}
            ),
        )

    def say(self, text: str, voice: Voice) -> np.ndarray:
        """The clip. Raises SpeechError."""
        import tenacity

        check_text(text)
        if voice.pitch != OWN_PITCH:
            raise SpeechError("voice", f"a server cannot change the pitch: {voice} needs pitch 0.5")
        error = self._openai
        try:
            for attempt in tenacity.Retrying(
                retry=tenacity.retry_if_exception(self._may_pass),
                stop=tenacity.stop_after_attempt(self._retries + 1),
                wait=tenacity.wait_exponential(multiplier=self._wait, max=20.0),
                reraise=True,
            ):
                with attempt:
                    data, kind = self._fetch(text, voice)
                    return self._decode(data, text, kind)
        # No error is chained: a server may repeat the key in its answer.
        except (error.APITimeoutError, TimeoutError):
            tries = self._retries + 1
            raise SpeechError(
                "timeout", f"{self.engine}: {tries} times no answer within {self._timeout:g} s"
            ) from None
        except error.APIStatusError as problem:
            said = masked(str(problem.message), self._key)[:_SHOWN]
            raise SpeechError(
                "server", f"{self.engine}: {problem.status_code} on {text!r}: {said}"
            ) from None
        except (error.APIError, ConnectionError) as problem:
            said = masked(str(problem), self._key)[:_SHOWN]
            raise SpeechError("server", f"{self.engine}: {said}") from None
        raise AssertionError("not reached")

    def version(self, voice: Voice) -> str:
        """The same for every voice."""
        return self.engine

    def close(self) -> None:
        """Closes the connections."""
        self._client.close()

    def _may_pass(self, problem: BaseException) -> bool:
        error = self._openai
        if isinstance(problem, error.APIStatusError):
            return problem.status_code in (408, 409, 429) or problem.status_code >= 500
        return isinstance(problem, error.APIConnectionError | TimeoutError | ConnectionError)

    def _bounded(self, response: Any) -> None:
        """Of an answer that is an error the client reads all, whatever its size: reads the start.

        Raises TimeoutError for one that drips.
        """
        if response.status_code < 400:
            return
        deadline = time.monotonic() + self._timeout
        found = bytearray()
        for part in response.iter_bytes():
            found += part
            if time.monotonic() > deadline:
                raise TimeoutError
            if len(found) > _MAX_ERROR:
                break
        response.close()
        response._content = bytes(found[:_MAX_ERROR])

    def _fetch(self, text: str, voice: Voice) -> tuple[bytes, str]:
        """The body and its Content-Type."""
        # The client's own limit is for each read: a server that drips would never meet it.
        deadline = time.monotonic() + self._timeout
        found = bytearray()
        with self._client.audio.speech.with_streaming_response.create(
            model=self._model, voice=voice.name, input=text, speed=voice.speed,
            response_format=self._format,  # type: ignore[arg-type]
        ) as response:
            kind = response.headers.get("content-type", "")
            chunks = response.iter_bytes()
            while chunk := _next(chunks):
                found += chunk
                if time.monotonic() > deadline:
                    raise TimeoutError
                if len(found) > _MAX_BYTES:
                    raise SpeechError("format", f"{self.engine}: {text!r} has no end")
        return bytes(found), kind

    def _decode(self, data: bytes, text: str, kind: str = "") -> np.ndarray:
        what = f"{self.engine} on {text!r}"
        if self._format == "pcm" and not data.startswith(b"RIFF"):
            said = {name.lower(): int(number) for name, number in _NUMBERS.findall(kind)}
            channels = max(said.get("channels", 1), 1)
            if len(data) % (2 * channels):
                raise SpeechError("format", f"{what}: {len(data)} bytes, not bare 16-bit samples;"
                                  " ask for wav")
            samples = np.frombuffer(data, "<i2").reshape(-1, channels) / np.float32(LEVELS)
            return to_clip(samples, said.get("rate", self._pcm_rate), what)
        try:
            samples, rate = self._soundfile.read(io.BytesIO(whole_wav(data)), dtype="float32")
        except RuntimeError as error:  # soundfile's own derives from it
            raise SpeechError("format", f"{what}: {len(data)} bytes, no WAV: {error}") from error
        return to_clip(samples, rate, what)


def _next(chunks: Iterator[bytes]) -> bytes:
    """The next bytes of a body, b"" at its end.

    In the midst of a body the client lets errors of its transport through, httpx or httpx2 by its
    version: raises TimeoutError or ConnectionError for them.
    """
    try:
        return next((chunk for chunk in chunks if chunk), b"")
    except Exception as problem:
        if "Timeout" in type(problem).__name__:
            raise TimeoutError from problem
        raise ConnectionError(f"the answer broke off: {problem}") from problem
