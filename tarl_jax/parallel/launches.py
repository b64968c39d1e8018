"""Which thread may launch programs, where two threads launch some for the same several devices.

Programs that run on several devices must come to each of these in the same order, or they wait for
one another for ever: between processes, and in one. So of the thread that learns and the one that
plays ahead one at a time may launch. The first gives that away while it waits for something else,
and the other gives it back between two ticks; with several processes at the one that they agree on
in words that they exchange there anyway (`rollout/workers.py`): when the first thread of the first
process wants it. In one process nothing here waits where each thread has devices of its own, or
where there is only one device.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import jax

from tarl_jax.parallel import hosts


class Launches:
    """Which may launch: the thread that makes this, or one other.

    together: whether both use the same devices of this process; with several processes they take
      turns also where they do not.
    """

    def __init__(self, together: bool) -> None:
        self._take_turns = hosts.several() or (together and jax.device_count() > 1)
        self._changed = threading.Condition()
        self._ahead = False  # whether the other one may
        self._tasks = 0  # of the other that have not ended; processes agree when it changes hands
        self._wanted = False
        self._closed = False
        _mine.launches = self if self._take_turns else None

    @contextlib.contextmanager
    def task(self) -> Iterator[None]:
        """Around a task of the other thread, which waits until it may launch. See `add`."""
        if not self._take_turns:
            yield
            return
        _mine.launches, _mine.ahead = self, True
        try:
            self._wait(True)
            yield
        finally:
            with self._changed:
                self._tasks -= 1
                if not self._tasks:
                    self._ahead = False
                self._changed.notify_all()

    def add(self) -> None:
        """Announces a task, before it is begun; by the first thread, while it may launch."""
        with self._changed:
            self._tasks += 1

    def close(self) -> None:
        """The other thread may launch no more: what it is about ends with an error."""
        _mine.launches = None
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def wanted(self) -> bool:
        """Whether the first thread waits to launch."""
        return self._wanted

    def pass_on(self) -> None:
        """Of the other thread: lets the first one launch, and waits until that is over."""
        self._hand(False)
        self._wait(True)

    @contextlib.contextmanager
    def given(self) -> Iterator[None]:
        """Of the first thread: the other may launch what it likes meanwhile."""
        if not self._tasks:
            yield
            return
        self._wanted = False
        self._hand(True)
        try:
            yield
        finally:
            self._wanted = True
            self._wait(False)

    def _hand(self, ahead: bool) -> None:
        with self._changed:
            self._ahead = ahead
            self._changed.notify_all()

    def _wait(self, ahead: bool) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._ahead == ahead or self._closed)
            if self._closed:
                raise RuntimeError("the run has ended")


class _Mine(threading.local):
    launches: Launches | None = None
    ahead = False


_mine = _Mine()


@contextlib.contextmanager
def given() -> Iterator[None]:
    """While this thread waits for something that is not a program, the one that plays ahead may
    launch programs; see `Launches.given`."""
    launches = None if _mine.ahead else _mine.launches
    with contextlib.nullcontext() if launches is None else launches.given():
        yield


def fetched(tree: Any) -> Any:
    """The arrays on the host, when they are there; `given` meanwhile, where what is launched waits
    on a device for what was launched before."""
    if jax.default_backend() == "cpu":  # whose programs run side by side
        jax.block_until_ready(tree)
    with given():
        return jax.device_get(tree)


def takes_turns() -> bool:
    """Whether this thread plays ahead, and launches only while the other one lets it."""
    return _mine.ahead and _mine.launches is not None


def wanted() -> bool:
    """Whether this thread plays ahead, and the other one of this process waits to launch."""
    return _mine.ahead and _mine.launches is not None and _mine.launches.wanted()


def pass_on() -> None:
    """What `wanted` asks for, when the processes agree on it."""
    if _mine.launches is not None:
        _mine.launches.pass_on()
