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
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import jax

from tarl_jax.parallel import hosts, launches
from tarl_jax.rollout.scheduler import Row
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


@dataclasses.dataclass(frozen=True)
class Unfinished:
    """A dialogue that another run can go on with, under other parameters.

    row: as far as it came; None if it was not begun. answer: what it waits for, if it does.
    """

    episode: Dialogue
    row: Row | None
    answer: Pending | None


@dataclasses.dataclass(frozen=True)
class _Fact:
    """What all processes know of a dialogue. carried: from an earlier run, with its row."""

    seed: int
    shared: int
    carried: bool
    row: Row | None


class Workers:
    """Starts and answers the dialogues of one run; `index` counts them over all processes, those
    of an earlier run first.

    Args:
      unfinished, episodes: of this process.
      seconds: after which the time is up; 0: never.
      enough: whether the run may end then; asked until one of the processes says so.
      ended: called with each dialogue of this process when it has ended.

    Attributes:
      seeds, shared: of the dialogues of all processes.
      rows: by index, of those that an earlier run began.
      late: whether the run ends, since its time is up; all processes agree. Set by `arrived`.
      outside_seconds: for how long dialogues of this process waited for the outside, added up.
    """

    def __init__(
        self, unfinished: Sequence[Unfinished], episodes: Sequence[Dialogue],
        pool: ThreadPoolExecutor, seconds: float, enough: Callable[[], bool],
        ended: Callable[[Dialogue], None] | None = None,
    ):
        self._pool = pool
        self._end = time.perf_counter() + seconds if seconds else float("inf")
        self._enough, self._ended = enough, ended
        self._done: queue.SimpleQueue[tuple[int, Pending]] = queue.SimpleQueue()
        self._inline: list[Arrival] = []
        self._failure: Exception | None = None  # until all processes know of it
        self.waiting: dict[int, Pending] = {}
        self.late = False
        self.outside_seconds = 0.0
        mine = [_Fact(u.episode.seed, u.episode.shared, True, u.row) for u in unfinished]
        mine += [_Fact(e.seed, e.shared, False, None) for e in episodes]
        parts = hosts.gathered([_told(fact) for fact in mine], None, _Fact)
        facts = [(rank, n, fact) for rank, part in enumerate(parts) for n, fact in enumerate(part)]
        facts.sort(key=lambda one: not one[2].carried)
        own = [*(u.episode for u in unfinished), *episodes]
        places = {n: index for index, (rank, n, _) in enumerate(facts)
                  if rank == jax.process_index()}
        self._episodes = {index: own[n] for n, index in places.items()}
        self.seeds = [fact.seed for _, _, fact in facts]
        self.shared = [fact.shared for _, _, fact in facts]
        self.rows = {i: fact.row for i, (_, _, fact) in enumerate(facts) if fact.row is not None}
        for n, left in enumerate(unfinished):
            if left.answer is not None:
                self._wait_for(places[n], left.answer)

    @property
    def count(self) -> int:
        """Dialogues of all processes."""
        return len(self.seeds)

    def episode(self, index: int) -> Dialogue | None:
        """None where another process plays it."""
        return self._episodes.get(index)

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

    def arrived(self, patience: float) -> list[Arrival]:
        """The answers that are there; waits for one for so many seconds, but not past the end.

        It waits for POLL at most where others wait for it: processes, or the thread that learns.

        Raises what a dialogue raised, or who was told of its end.
        """
        alone = not hosts.several()
        mine, self._inline = self._inline, []
        left = self._end - time.perf_counter()
        if left > 0:  # else it goes on for want of what is enough
            patience = min(patience, left)
        if not alone or launches.takes_turns():
            patience = min(patience, POLL)
        if not mine and patience > 0 and not self.late:
            with contextlib.suppress(queue.Empty):
                mine += self._collect(self._done.get(timeout=min(patience, 1e6)))
        while not self._done.empty():
            mine += self._collect(self._done.get())
        for index, answer in mine:
            if answer is None and self._ended:
                try:
                    self._ended(self._episodes[index])
                except Exception as error:
                    self._fail(error)
        late = time.perf_counter() >= self._end
        if alone:
            self.late = late and self._enough()
            if launches.wanted():
                launches.pass_on()
            return mine
        said = late, self._enough(), mine, launches.wanted()
        found = hosts.gathered(said, self._failure, Answer)
        late, _, _, wanted = found[0]  # one clock is everybody's
        self.late = late and any(enough for _, enough, _, _ in found)
        if wanted:
            launches.pass_on()
        return [arrival for _, _, arrivals, _ in found for arrival in arrivals]

    def _wait_for(self, index: int, pending: Pending) -> None:
        self.waiting[index] = pending
        pending.add_done_callback(lambda done: self._done.put((index, done)))

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

        self._wait_for(index, self._pool.submit(timed))

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


def _told(fact: _Fact) -> _Fact:
    """The same for other processes, which make what its row hears again, from the clips."""
    if fact.row is None:
        return fact
    spoken = [dataclasses.replace(s, inputs=s.inputs[:, :0]) for s in fact.row.spoken]
    return dataclasses.replace(fact, row=dataclasses.replace(fact.row, spoken=spoken))
