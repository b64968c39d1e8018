"""The host side of a run's dialogues: where turns are answered, in line or in threads.

A dialogue that waits for something outside (a language model that plays the user, a synthesiser)
is answered in a thread, the others at once. With several processes each answers its own dialogues
and tells the others, so that all of them know the same.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import queue
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import jax
import numpy as np

from tarl_jax.sounds import Sound

_LEVELS = np.float32(32_768)  # of a clip's samples, which are whole numbers of its inverse
_POLL = 0.05  # seconds that a process waits for its own answers before it asks the others


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
    sounds: what is heard at some of the tokens, in order.
    """

    tokens: list[int]
    keep: int | None = None
    sounds: tuple[Sound, ...] = ()


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


class Players:
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
        self.waiting: dict[int, Pending] = {}
        self.late = False
        self.outside_seconds = 0.0
        facts = np.array([(e.seed, e.shared) for e in episodes], np.int64).reshape(-1, 2)
        rank = jax.process_index()
        parts = _all_gather(facts.ravel())
        self._first = sum(len(part) // 2 for part in parts[:rank])
        everyone = np.concatenate(parts).reshape(-1, 2)
        self.seeds, self.shared = everyone[:, 0].tolist(), everyone[:, 1].tolist()

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
            self._call(index, episode, lambda: _opening(episode))

    def turn(self, index: int, turn: Turn) -> None:
        """Asks for the answer to a turn."""
        episode = self.episode(index)
        if episode is not None:
            self._call(index, episode, lambda: episode.turn(turn))

    def resume(self, index: int, pending: Pending) -> None:
        """Goes on waiting for an answer that an earlier run asked for."""
        self.waiting[index] = pending
        pending.add_done_callback(lambda done: self._done.put((index, done)))

    def arrived(self, block: bool) -> list[Arrival]:
        """The answers that are there; waits for one if `block`, but not past the end.

        Raises what a dialogue raised.
        """
        alone = jax.process_count() == 1
        mine, self._inline = self._inline, []
        begun = time.perf_counter()
        patience = min(self._end - begun, float("inf") if alone else _POLL)
        if block and not mine and patience > 0:
            with contextlib.suppress(queue.Empty):
                mine += self._collect(self._done.get(timeout=min(patience, 1e6)))
        while not self._done.empty():
            mine += self._collect(self._done.get())
        late = time.perf_counter() >= self._end
        if alone:
            self.late = late
            return mine
        found: list[Arrival] = []
        for rank, part in enumerate(_all_gather(_encode(mine, late))):
            lates, arrivals = _decode(part)
            found += arrivals
            self.late = lates if rank == 0 else self.late
        return found

    def _call(self, index: int, episode: Dialogue, answer) -> None:
        if not episode.outside:
            self._inline.append((index, answer()))
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
        return [(index, future.result())]


def _opening(episode: Dialogue) -> Answer | None:
    tokens = episode.start()
    return Answer(tokens) if isinstance(tokens, list) else tokens


def _encode(arrivals: list[Arrival], late: bool) -> np.ndarray:
    flat = [int(late)]
    for index, answer in arrivals:
        if answer is None:
            flat += [index, -1, 0]
        else:
            keep = -1 if answer.keep is None else answer.keep
            flat += [index, len(answer.tokens), keep, *answer.tokens, len(answer.sounds)]
            for sound in answer.sounds:
                levels = (sound.clip * _LEVELS).astype(int).tolist()
                flat += [sound.first, sound.tokens, len(levels), *levels]
    return np.array(flat, np.int64)


def _decode(flat: np.ndarray) -> tuple[bool, list[Arrival]]:
    numbers = iter(flat.tolist())
    late = bool(next(numbers))
    arrivals: list[Arrival] = []
    for index in numbers:
        length, keep = next(numbers), next(numbers)
        if length < 0:
            arrivals.append((index, None))
            continue
        tokens = list(itertools.islice(numbers, length))
        sounds = []
        for _ in range(next(numbers)):
            first, count, samples = next(numbers), next(numbers), next(numbers)
            levels = np.array(list(itertools.islice(numbers, samples)), np.float32)
            sounds.append(Sound(first, count, levels / _LEVELS))
        answer = Answer(tokens, None if keep < 0 else keep, tuple(sounds))
        arrivals.append((index, answer))
    return late, arrivals


def _all_gather(values: np.ndarray) -> list[np.ndarray]:
    """Each process's integers, of any number, in the order of the processes."""
    if jax.process_count() == 1:
        return [values]
    from jax.experimental.multihost_utils import process_allgather

    sizes = process_allgather(np.array([values.size], np.int32)).ravel()
    longest = 1 << int(sizes.max()).bit_length()  # few shapes
    halves = np.zeros((longest, 2), np.uint32)  # 64 bits would be cut to 32
    halves[: values.size] = values.astype(np.uint64)[:, None] >> np.array([0, 32], np.uint64)
    every = np.asarray(process_allgather(halves)).reshape(len(sizes), longest, 2)
    joined = (every[..., 0].astype(np.uint64) | every[..., 1].astype(np.uint64) << 32)
    return [row[:size].astype(np.int64) for row, size in zip(joined, sizes, strict=True)]
