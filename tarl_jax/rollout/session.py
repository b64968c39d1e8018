"""The engine for those who come and go: ask for one turn behind any context, at any time.

What is written is a function of the parameters and of what is asked (`Ask`); who asked before, and
who else asks meanwhile, changes nothing. A context that goes on where an earlier one ended finds
its cache again: only the new tokens are fed. A thread of the session's own drives the device.
"""

from __future__ import annotations

import contextlib
import dataclasses
import queue
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future

import numpy as np

from tarl_jax.models import decoder
from tarl_jax.rollout.arrivals import Arrivals
from tarl_jax.rollout.engine import Engine
from tarl_jax.rollout.grammar import Grammar, after, stacked
from tarl_jax.rollout.prepared import Ready
from tarl_jax.rollout.running import EngineStats
from tarl_jax.rollout.sampling import Sampling
from tarl_jax.rollout.scheduler import Row, SpokenInputs, keys_of
from tarl_jax.rollout.workers import Turn

GRAMMARS = 8  # that rows follow at a time
_STATES, _CLASSES = 512, 128  # room for a grammar grows by so many
_TICK = 1.0  # seconds after which an idle session looks whom it may forget


@dataclasses.dataclass(frozen=True)
class Ask:
    """One turn to be written.

    Attributes:
      tokens: of the whole context, the turn's own beginning (`begun`) included; at least one.
      dropped: tokens that have left the context before (`scheduler.Row.dropped`).
      seed: of the sampling; what is drawn hangs on it and on the position.
      sampling: how.
      limit: tokens to be sampled, at most; 0: none, the context is read ahead.
      grammar: what may be written, known again as the same object; None: anything.
      begun: how many of the tokens, the last ones, begin the turn, and count in the grammar.
      row: where the context was continued last (`Written.row`), if known.
      spoken: what some of the tokens sound like, in order, one behind the other. Where something is
        to be written, the last token is none of them: it is fed by writing.
    """

    tokens: Sequence[int]
    seed: int
    sampling: Sampling
    limit: int
    grammar: Grammar | None = None
    begun: int = 0
    dropped: int = 0
    row: int = -1
    spoken: Sequence[SpokenInputs] = ()


@dataclasses.dataclass(frozen=True)
class Written:
    """A turn that was asked for; `row` names its context, and `fed` tokens were read before it.

    stopped: whether it ended for the listener's sake, not by an end token or at its limit.
    """

    turn: Turn
    row: int
    fed: int
    stopped: bool = False


Listener = Callable[[list[int]], bool]  # told the turn so far; whether that is enough


@dataclasses.dataclass(eq=False)
class _Job:
    ask: Ask
    listener: Listener | None
    future: Future[Written]
    place: int = 0  # of its grammar


class Session:
    """Rows that stay from turn to turn; see the module's docstring.

    params: stacked, as training has them, or what `Engine.ready` made of them.
    free: the grammar of those who name none.
    idle_seconds: after which a context that nobody continues is forgotten.
    most: contexts that are kept; beyond them the longest unused is forgotten; 0: any number.

    Attributes:
      stats: of all that was written so far.
      failures: ticks that the device failed in; who wrote then was told.
    """

    def __init__(
        self, engine: Engine, params: decoder.Params | Ready, free: Grammar,
        idle_seconds: float = 300.0, most: int = 0,
    ):
        self._programs = engine.programs
        self._grammars = _Places(free)
        self._programs.use_grammar(self._grammars.together())
        self._running = engine.open(params)
        self._idle_seconds, self._most = idle_seconds, most
        self._inbox: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._waiting: deque[_Job] = deque()  # for a place of their grammar
        self._jobs: dict[int, _Job] = {}  # by row
        self._next = 0
        self._arrivals = Arrivals()
        self._burst = 0.0  # seconds that one takes
        self._closing = False
        self.failures = 0
        self.stats: EngineStats = self._running.stats
        self._thread = threading.Thread(target=self._drive, name="session", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def writing(self) -> int:
        """Turns that are asked for and not yet written."""
        return len(self._jobs) + len(self._waiting) + self._inbox.qsize()

    @property
    def contexts(self) -> int:
        """Contexts that are kept."""
        return len(self._running.rows)

    def ask(self, ask: Ask, listener: Listener | None = None) -> Future[Written]:
        """Begins a turn. `listener` is called in the session's thread after each burst.

        Raises: ValueError where the context leaves no room for the turn, or its sound is not as
        `Ask` has it; RuntimeError once closed.
        """
        if self._closing or not self.alive:
            raise RuntimeError("the session is closed")
        if not ask.tokens or ask.limit < 0:
            raise ValueError("a turn stands behind at least one token, and has no fewer than none")
        most = self._programs.longest
        if len(ask.tokens) + ask.limit > most:
            raise ValueError(f"{len(ask.tokens)} tokens leave no room for a turn of {ask.limit}"
                             f" within {most}")
        self._check_sound(ask)
        job = _Job(ask, listener, Future())
        job.future.set_running_or_notify_cancel()  # who no longer wants it cannot take it back
        self._inbox.put(job)
        return job.future

    def _check_sound(self, ask: Ask) -> None:
        at, end, width = 0, len(ask.tokens) - (ask.limit > 0), self._programs.hear.width
        for sound in ask.spoken:
            shape = np.shape(sound.inputs)
            if shape[1:] != (width,) or not at <= sound.first <= sound.end <= end:
                raise ValueError(f"sound of shape {shape} at {sound.first}: does not stand behind"
                                 f" {at} and before {end}, with {width} numbers a token")
            at = sound.end

    def close(self) -> None:
        """Writes what was asked for, and ends."""
        self._closing = True
        self._inbox.put(None)
        self._thread.join()

    # ---- the session's own thread ------------------------------------------------------------

    def _drive(self) -> None:
        while True:
            self._take()
            running = self._running
            if self._closing and not self._jobs and not self._waiting and self._inbox.empty():
                return
            try:
                running.admit()
                writing = running.scheduler.writing
                if writing:
                    begun = time.monotonic()
                    over = running.write()
                    took = time.monotonic() - begun
                    self._burst += (took - self._burst) / 4 if self._burst else took
                    self._tell(writing, over)
            except Exception as error:
                self._fail(error)
            self._forget()

    def _take(self) -> None:
        """Lets in who has come, and waits a little for who may come soon; see `arrivals`.

        Where nobody writes it waits for anybody.
        """
        begun = time.monotonic()
        wait = self._patience(begun) if self._jobs else _TICK
        with contextlib.suppress(queue.Empty):
            while True:
                job = self._inbox.get(timeout=wait)
                now = time.monotonic()
                begun = begun if self._jobs or self._waiting else now
                if job is not None:
                    self._waiting.append(job)
                    row = self._running.rows.get(job.ask.row)
                    if row is not None and row.asking:
                        self._arrivals.came(row.index, row.used, now)
                wait = max(min(self._patience(now), begun + self._burst / 2 - now), 0.0)
        while self._waiting:
            place, changed = self._grammars.place(self._waiting[0].ask.grammar)
            if place is None:
                return
            if changed:
                self._programs.use_grammar(self._grammars.together())
            job = self._waiting.popleft()
            job.place = place
            self._begin(job)

    def _patience(self, now: float) -> float:
        return self._arrivals.patience(len(self._jobs) + len(self._waiting), self._burst, now)

    def _begin(self, job: _Job) -> None:
        ask, scheduler = job.ask, self._running.scheduler
        tokens, keep = list(ask.tokens), 0
        keys = keys_of(tokens, ask.spoken)
        rows = self._running.rows
        row = rows.get(ask.row)
        if row is None or not row.asking or row.keys[:1] != keys[:1]:
            idle = [other for other in rows.values() if other.asking]
            if idle and 0 < self._most <= len(rows):
                self._end(min(idle, key=lambda other: other.used))
            row = rows[self._next] = Row(self._next, ask.seed)
            self._next += 1
            scheduler.begin(row)
        else:
            keep = _common(row.keys, keys)
        keep = min(keep, len(tokens) - 1)  # the newest is fed by writing
        spoken = [sound.behind(keep) for sound in ask.spoken if sound.end > keep]
        scheduler.answered(row, tokens[keep:], keep, spoken)
        row.seed, row.dropped, row.sampling, row.limit = (
            ask.seed, ask.dropped, ask.sampling, ask.limit
        )
        row.reading = not ask.limit
        begun = tokens[len(tokens) - ask.begun :]
        row.syntax = self._grammars.state(job.place, begun)
        self._jobs[row.index] = job
        self._running.stats.forced_tokens += len(tokens) - keep

    def _tell(self, writing: Sequence[Row], over: Sequence[Row]) -> None:
        for row in writing:
            job, stopped = self._jobs[row.index], False
            if row not in over and job.listener is not None:
                stopped = job.listener(_written(row))
                row.asking = stopped
            if row.asking:
                turn = Turn(_written(row), row.log_probs, row.drawn_log_probs)
                del self._jobs[row.index]
                self._grammars.leave(job.place)
                row.used = time.monotonic()
                if not row.reading:
                    self._arrivals.left(row.index, row.used)
                fed = row.read + (not row.reading)  # the newest by writing
                job.future.set_result(Written(turn, row.index, fed, stopped))

    def _forget(self) -> None:
        """Gives up the contexts that nobody has continued for long, and room that none needs."""
        running, now = self._running, time.monotonic()
        for row in list(running.rows.values()):
            if row.asking and now - row.used > self._idle_seconds:
                self._end(row)
        running.rest()

    def _end(self, row: Row) -> None:
        self._running.scheduler.ended(row)
        del self._running.rows[row.index]

    def _fail(self, error: Exception) -> None:
        """Tells all who wrote, and begins anew: what is on the device may be lost."""
        self.failures += 1
        jobs, self._jobs = list(self._jobs.values()), {}
        for job in jobs:
            self._grammars.leave(job.place)
        self._running.renew()
        for job in jobs:
            job.future.set_exception(error)


class _Places:
    """Which grammar is where in the arrays that all rows share; the first is the free one."""

    def __init__(self, free: Grammar):
        self._held = [free] * GRAMMARS
        self._at: OrderedDict[int, int] = OrderedDict()  # by identity, the longest unused first
        self._rows = [0] * GRAMMARS  # that follow it
        self._states, self._classes = 3 * _STATES, _CLASSES  # of 60 tools and more

    def place(self, grammar: Grammar | None) -> tuple[int | None, bool]:
        """(where it is, None if there is no room yet; whether the arrays have changed)."""
        if grammar is None:
            self._rows[0] += 1
            return 0, False
        changed = id(grammar) not in self._at
        if changed:
            grows = self._room(grammar) != (self._states, self._classes)
            if grows and any(self._rows):  # states are numbered anew: nobody may be in one
                return None, False
            place = len(self._at) + 1
            if place == GRAMMARS:
                idle = next((n for n, at in self._at.items() if not self._rows[at]), None)
                if idle is None:
                    return None, False
                place = self._at.pop(idle)
            self._at[id(grammar)], self._held[place] = place, grammar
            self._states, self._classes = self._room(grammar)
        self._at.move_to_end(id(grammar))
        self._rows[self._at[id(grammar)]] += 1
        return self._at[id(grammar)], changed

    def leave(self, place: int) -> None:
        self._rows[place] -= 1

    def state(self, place: int, begun: Sequence[int]) -> int:
        """Where a turn with this beginning is."""
        return place * self._states + max(after(self._held[place], begun), 0)

    def together(self) -> Grammar:
        return stacked(self._held, self._states, self._classes)

    def _room(self, grammar: Grammar) -> tuple[int, int]:
        """(states, classes) that each place has, once this one has one."""
        states, classes = grammar.next_state.shape
        return (max(self._states, -(-states // _STATES) * _STATES),
                max(self._classes, -(-classes // _CLASSES) * _CLASSES))


def _written(row: Row) -> list[int]:
    return row.tokens[len(row.tokens) - row.written :]


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """How many leading tokens are the same."""
    count = min(len(a), len(b))
    if list(a[:count]) == list(b[:count]):
        return count
    return next(i for i in range(count) if a[i] != b[i])
