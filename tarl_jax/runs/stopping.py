"""Stopping a run between steps, so that nothing of it is lost."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Self

from tarl_jax.config import TarlError


class Interrupted(TarlError):
    """The user, or a scheduler, asked to stop; the message says how to resume.

    code: the exit status, 128 and the signal's number.
    """

    def __init__(self, message: str, number: int):
        super().__init__(message)
        self.code = 128 + number


class StopRequest:
    """Turns the first signal to stop into a request that the loop honours between steps.

    Ctrl-C, or SIGTERM, which schedulers and clouds send some time before they kill.

    Attributes:
      received: the signal's number; 0: none so far.
    """

    def __init__(self) -> None:
        self.received = 0

    def __enter__(self) -> Self:
        # Where processes are joined JAX swallows SIGTERM, unless someone takes it afterwards.
        kinds = signal.SIGINT, signal.SIGTERM
        self._previous = {kind: signal.signal(kind, self._on_signal) for kind in kinds}
        return self

    def __exit__(self, *_: object) -> None:
        for kind, handler in self._previous.items():
            # None: whoever took the signal before is not Python, and cannot be put back.
            signal.signal(kind, signal.SIG_DFL if handler is None else handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.received:
            raise KeyboardInterrupt
        self.received = number
