"""eSpeak NG, from the wheel `espeakng-loader`: small, quick, the same samples for the same text."""

from __future__ import annotations

import importlib.metadata

import numpy as np

from tarl_jax.speech.pool import WorkerPool, worker_command
from tarl_jax.speech.synthesis import Voice, check_text, not_installed

RATE = 22_050
COMMAND = worker_command("espeak")


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
        return self._pool.say(f"eSpeak NG on {text!r}", {
            "text": text, "voice": voice.name, "speed": voice.speed, "pitch": voice.pitch,
            "timeout_seconds": self._timeout,
        }, RATE)

    def version(self, voice: Voice) -> str:
        """The same for every voice."""
        return self.engine

    def close(self) -> None:
        """Ends the processes."""
        self._pool.close()

    @property
    def pids(self) -> list[int]:
        """Of the processes that run."""
        return self._pool.pids
