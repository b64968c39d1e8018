"""eSpeak NG, from the wheel `espeakng-loader`: small, quick, the same samples for the same text."""

from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path

import numpy as np

from tarl_jax.speech.pool import WorkerPool
from tarl_jax.speech.synthesis import LEVELS, SpeechError, Voice, check_text, not_installed, to_clip

RATE = 22_050
# -P: without this folder on the path, where a module could hide one of the standard library.
COMMAND = (sys.executable, "-P", str(Path(__file__).with_name("espeak_worker.py")))


class Espeak:
    """Speaks in `workers` processes; a `Synthesiser`.

    Raises SpeechError where the package is not installed.
    """

    def __init__(
        self, *, workers: int = 1, timeout_seconds: float = 30.0,
        command: tuple[str, ...] = COMMAND,
    ):
        try:
            versions = [importlib.metadata.version(p) for p in ("espeakng-loader", "soxr")]
        except importlib.metadata.PackageNotFoundError as error:
            raise not_installed(str(error.name)) from error
        self.engine = "espeak {} soxr {}".format(*versions)
        self._timeout = timeout_seconds
        self._pool = WorkerPool(command, workers=workers, timeout_seconds=timeout_seconds)

    def say(self, text: str, voice: Voice) -> np.ndarray:
        """The clip. Raises SpeechError."""
        check_text(text)
        header, payload = self._pool.ask({
            "text": text, "voice": voice.name, "speed": voice.speed, "pitch": voice.pitch,
            "timeout_seconds": self._timeout,
        })
        what = f"eSpeak NG on {text!r}"
        if header.get("rate") != RATE:
            raise SpeechError("rate", f"{what}: {header.get('rate')} samples a second, not {RATE}")
        if len(payload) % 2:
            raise SpeechError("format", f"{what}: {len(payload)} bytes are not 16-bit samples")
        return to_clip(np.frombuffer(payload, "<i2") / np.float32(LEVELS), RATE, what)

    def close(self) -> None:
        """Ends the processes."""
        self._pool.close()

    @property
    def pids(self) -> list[int]:
        """Of the processes that run."""
        return self._pool.pids
