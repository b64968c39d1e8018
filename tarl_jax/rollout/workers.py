"""The host side of a run's dialogues: where turns are answered, in line or in threads.

A dialogue that waits for something outside (a language model that plays the user, a synthesiser)
is answered in a thread, the others at once. With several processes each answers its own dialogues
and tells the others, so that all of them know the same.
"""

from __future__ import annotations

import contextlib
import dataclasses
import queue
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import jax

from tarl_jax.parallel import hosts, launches
from tarl_jax.speech.sound import Sound

POLL = 0.05  # seconds without an answer before others are asked: other processes, or new dialogues


@dataclasses.dataclass(frozen=True)
class Turn:
    """A turn that the policy wrote.

    log_probs: of the tokens, at the temperature, in the whole distribution.
    drawn_log_probs: in the distribution they were drawn from; the same where nothing was cut off.
    """

    ids: list[int]
    log_probs: list[float]
    drawn_log_probs: list[float]


@dataclasses.dataclass(frozen=True)
class Answer:
    """The tokens that follow a turn.

    keep: how many tokens of the dialogue so far stay in the context before them; None: all.
    sounds: at some of the tokens, in order.
    dropped: how many tokens have left the context by now; None: as many as `keep` says.
    """

    tokens: list[int]
    keep: int | None = None
    sounds: tuple[Sound, ...] = ()
    dropped: int | None = None


class Dialogue(Protocol):
    """What the engine needs of an episode.

    seed: of its sampling. outside: whether `start` and `turn` wait for something outside this
    process; they then run in a thread, one of them at a time. shared: how many tokens all
    dialogues of its kind begin with.
    """

    seed: int
    outside: bool
    shared: int

    def start(self) -> list[int] | Answer | None:
        """The tokens before the first turn, or those with sounds; None if there will be none."""
        ...

    def turn(self, turn: Turn) -> Answer | None:
        """Takes a turn; returns what answers it, or None if it was the last."""
        ...

    def cut(self) -> None:
        """Ends the dialogue where it is, even while `start` or `turn` waits in another thread."""
        ...


Pending = Future[Answer | None]
Arrival = tuple[int, Answer | None]


class Workers:
    """Starts and answers the dialogues of one run; `index` counts them over all processes.

    Attributes:
      seeds, shared: of the dialogues of all processes.
      late: whether `seconds` have passed; all processes agree. Set by `arrived`.
      outside_seconds: for how long dialogues of this process waited for the outside, added up.
    """

    def __init__(self, episodes: Sequence[Dialogue], pool: ThreadPoolExecutor, seconds: float):
        self._episodes = episodes
        self._pool = pool
        self._end = time.perf_counter() + seconds if seconds else float("inf")
        self._done: queue.SimpleQueue[tuple[int, Pending]] = queue.SimpleQueue()
        self._inline: list[Arrival] = []
        self._failure: Exception | None = None  # until all processes know of it
        self.waiting: dict[int, Pending] = {}
        self.late = False
        self.outside_seconds = 0.0
        facts = hosts.gathered([(e.seed, e.shared) for e in episodes])
        self._first = sum(len(part) for part in facts[: jax.process_index()])
        self.seeds = [seed for part in facts for seed, _ in part]
        self.shared = [shared for part in facts for _, shared in part]

    @property
    def count(self) -> int:
        """Dialogues of all processes."""
        return len(self.seeds)

    def episode(self, index: int) -> Dialogue | None:
        """None where another process plays it."""
        local = index - self._first
        return self._episodes[local] if 0 <= local < len(self._episodes) else None

    def start(self, index: int) -> None:
        """Asks for the first tokens."""
        episode = self.episode(index)
        if episode is not None:
            self._call(index, episode, lambda: opening(episode))

    def turn(self, index: int, turn: Turn) -> None:
        """Asks for the answer to a turn."""
        episode = self.episode(index)
        if episode is not None:
            self._call(index, episode, lambda: episode.turn(turn))

    def resume(self, index: int, pending: Pending) -> None:
        """Goes on waiting for an answer that an earlier run asked for."""
        self.waiting[index] = pending
        pending.add_done_callback(lambda done: self._done.put((index, done)))

    def arrived(self, patience: float) -> list[Arrival]:
        """The answers that are there; waits for one for so many seconds, but not past the end.

        With several processes it waits for POLL at most.

        Raises what a dialogue raised.
        """
        alone = not hosts.several()
        mine, self._inline = self._inline, []
        patience = min(patience, self._end - time.perf_counter(), float("inf") if alone else POLL)
        if not mine and patience > 0:
            with contextlib.suppress(queue.Empty):
                mine += self._collect(self._done.get(timeout=min(patience, 1e6)))
        while not self._done.empty():
            mine += self._collect(self._done.get())
        late = time.perf_counter() >= self._end
        if alone:
            self.late = late
            return mine
        found = hosts.gathered((late, mine, launches.wanted()), self._failure, Answer)
        self.late, _, wanted = found[0]
        if wanted:
            launches.pass_on()
        return [arrival for _, arrivals, _ in found for arrival in arrivals]

    def _call(self, index: int, episode: Dialogue, answer) -> None:
        if not episode.outside:
            try:
                self._inline.append((index, answer()))
            except Exception as error:
                self._fail(error)
            return
        begun = time.perf_counter()

        def timed() -> Answer | None:
            try:
                return answer()
            finally:
                self.outside_seconds += time.perf_counter() - begun

        self.resume(index, self._pool.submit(timed))

    def _collect(self, done: tuple[int, Pending]) -> list[Arrival]:
        index, future = done
        del self.waiting[index]
        try:
            return [(index, future.result())]
        except Exception as error:
            self._fail(error)
            return []

    def _fail(self, error: Exception) -> None:
        """Raises it; one of several processes waits until the others can hear of it."""
        if not hosts.several():
            raise error
        self._failure = self._failure or error


def opening(episode: Dialogue) -> Answer | None:
    """What `start` gives, as an answer."""
    tokens = episode.start()
    return Answer(tokens) if isinstance(tokens, list) else tokens
