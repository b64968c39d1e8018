"""Stopping a run so that nothing of it is lost, and answering whoever asks at once."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Self

from tarl_jax.config import TarlError

GRACE = 10.0  # seconds that a second signal gives the process to end by itself
KINDS = signal.SIGINT, signal.SIGTERM


class Interrupted(TarlError):
    """The user, or a scheduler, asked to stop; the message says how to resume.

    code: the exit status, 128 and the signal's number.
    """

    keeps_run = True

    def __init__(self, message: str, number: int):
        super().__init__(message)
        self.code = 128 + number


class StopRequest:
    """Turns the first signal to stop into a request that the loop honours where it can.

    Ctrl-C, or SIGTERM, which schedulers and clouds send some time before they kill. A thread
    answers at once, whatever the program is in the middle of: Python itself hears of a signal only
    when a compilation or a long device program is over. The second signal raises
    KeyboardInterrupt, and ends the process where that does not help within GRACE seconds.

    Attributes:
      received: the signal's number; 0: none so far.
      say: takes the line that answers.
    """

    def __init__(self, say: Callable[[str], None] = print) -> None:
        self.received = 0
        self.say = say
        self._breaks = False
        self._over = threading.Event()

    def __enter__(self) -> Self:
        # Where processes are joined JAX swallows SIGTERM, unless someone takes it afterwards.
        self._previous = {kind: signal.signal(kind, self._on_signal) for kind in KINDS}
        self._reading, self._writing = socket.socketpair()
        self._writing.setblocking(False)
        self._woken = signal.set_wakeup_fd(self._writing.fileno(), warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._answer, name="stop", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        signal.set_wakeup_fd(self._woken)
        for kind, handler in self._previous.items():
            # None: whoever took the signal before is not Python, and cannot be put back.
            signal.signal(kind, signal.SIG_DFL if handler is None else handler)
        self._writing.close()
        self._thread.join()
        self._reading.close()

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """A block of which nothing is kept: the first signal ends it, by KeyboardInterrupt."""
        self._breaks = True
        try:
            if self.received:
                raise KeyboardInterrupt
            yield
        finally:
            self._breaks = False

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        again, self.received = bool(self.received), self.received or number
        if again or self._breaks:
            raise KeyboardInterrupt

    def _answer(self) -> None:
        """Reads what the system writes at a signal, a byte with its number."""
        count = 0
        while data := self._reading.recv(64):
            for number in data:
                if number not in KINDS:
                    continue
                count += 1
                if count == 1:
                    self._say(
                        f"{signal.Signals(number).name}: stopping where nothing is lost; once more"
                        " ends at once"
                    )
                elif count == 2:
                    self._say("ending at once")
                    threading.Thread(target=self._end, args=(number,), daemon=True).start()

    def _say(self, line: str) -> None:
        # A view that cannot print must not keep the process from ending.
        with contextlib.suppress(Exception):
            self.say(line)

    def _end(self, number: int) -> None:
        if not self._over.wait(GRACE):
            print("error: ended in the middle; what was written whole stays", file=sys.stderr)
            os._exit(128 + number)
