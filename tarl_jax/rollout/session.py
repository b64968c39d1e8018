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

from tarl_jax.models import decoder
from tarl_jax.rollout.engine import Engine
from tarl_jax.rollout.grammar import Grammar, after, stacked
from tarl_jax.rollout.running import EngineStats
from tarl_jax.rollout.sampling import Sampling
from tarl_jax.rollout.scheduler import Row
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
      limit: tokens to be sampled, at most.
      grammar: what may be written, known again as the same object; None: anything.
      begun: how many of the tokens, the last ones, begin the turn, and count in the grammar.
      row: where the context was continued last (`Written.row`), if known.
    """

    tokens: Sequence[int]
    seed: int
    sampling: Sampling
    limit: int
    grammar: Grammar | None = None
    begun: int = 0
    dropped: int = 0
    row: int = -1


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
    fed: int = 0


class Session:
    """Rows that stay from turn to turn; see the module's docstring.

    params: stacked, as training has them.
    free: the grammar of those who name none.
    idle_seconds: after which a context that nobody continues is forgotten.

    Attributes:
      stats: of all that was written so far.
      failures: ticks that the device failed in; who wrote then was told.
    """

    def __init__(
        self, engine: Engine, params: decoder.Params, free: Grammar, idle_seconds: float = 300.0
    ):
        self._programs = engine.programs
        self._grammars = _Places(free)
        self._programs.use_grammar(self._grammars.together())
        self._running = engine.open(params)
        self._idle_seconds = idle_seconds
        self._inbox: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._waiting: deque[_Job] = deque()  # for a place of their grammar
        self._jobs: dict[int, _Job] = {}  # by row
        self._used: dict[int, float] = {}  # when each row was last written
        self._next = 0
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

        Raises: ValueError where the context leaves no room for the turn, RuntimeError once closed.
        """
        if self._closing or not self.alive:
            raise RuntimeError("the session is closed")
        if not ask.tokens or ask.limit < 1:
            raise ValueError("a turn stands behind at least one token, and has at least one")
        most = self._programs.longest
        if len(ask.tokens) + ask.limit > most:
            raise ValueError(f"{len(ask.tokens)} tokens leave no room for a turn of {ask.limit}"
                             f" within {most}")
        job = _Job(ask, listener, Future())
        job.future.set_running_or_notify_cancel()  # who no longer wants it cannot take it back
        self._inbox.put(job)
        return job.future

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
                    before = running.stats.fed_tokens
                    over = running.write()
                    self._count(writing, running.stats.fed_tokens - before)
                    self._tell(writing, over)
            except Exception as error:
                self._fail(error)
            self._forget()

    def _take(self) -> None:
        """Lets in who has come; waits for somebody where nobody writes."""
        busy = bool(self._jobs)
        with contextlib.suppress(queue.Empty):
            while True:
                job = self._inbox.get(timeout=None if busy else _TICK, block=not busy)
                busy = True
                if job is not None:
                    self._waiting.append(job)
        while self._waiting:
            place, changed = self._grammars.place(self._waiting[0].ask.grammar)
            if place is None:
                return
            if changed:
                self._programs.use_grammar(self._grammars.together())
            job = self._waiting.popleft()
            job.place = place
            self._begin(job)

    def _begin(self, job: _Job) -> None:
        ask, scheduler = job.ask, self._running.scheduler
        tokens, keep = list(ask.tokens), 0
        row = self._running.rows.get(ask.row)
        if row is None or not row.asking or row.tokens[:1] != tokens[:1]:
            row = Row(self._next, ask.seed)
            self._next += 1
            self._running.rows[row.index] = row
            scheduler.begin(row)
        else:
            keep = _common(row.tokens, tokens)
        keep = min(keep, len(tokens) - 1)  # the newest is fed by writing
        scheduler.answered(row, tokens[keep:], keep)
        row.seed, row.dropped, row.sampling, row.limit = (
            ask.seed, ask.dropped, ask.sampling, ask.limit
        )
        begun = tokens[len(tokens) - ask.begun :]
        row.syntax = self._grammars.state(job.place, begun)
        self._jobs[row.index] = job
        self._running.stats.forced_tokens += len(tokens) - keep

    def _count(self, writing: Sequence[Row], fed: int) -> None:
        """Shares out what was fed: exact where one row was."""
        fresh = [row for row in writing if self._jobs[row.index].fed == 0]
        for row in fresh:
            self._jobs[row.index].fed = max(fed // len(fresh), 1)

    def _tell(self, writing: Sequence[Row], over: Sequence[Row]) -> None:
        for row in writing:
            job, stopped = self._jobs[row.index], False
            if row not in over and job.listener is not None:
                stopped = job.listener(row.tokens[-row.written :])
                row.asking = stopped
            if row.asking:
                turn = Turn(row.tokens[-row.written :], row.log_probs, row.drawn_log_probs)
                del self._jobs[row.index]
                self._grammars.leave(job.place)
                self._used[row.index] = time.monotonic()
                job.future.set_result(Written(turn, row.index, job.fed, stopped))

    def _forget(self) -> None:
        """Gives up the contexts that nobody has continued for long, and room that none needs."""
        running, now = self._running, time.monotonic()
        for index, used in list(self._used.items()):
            row = running.rows.get(index)
            if row is None or (row.asking and now - used > self._idle_seconds):
                if row is not None:
                    running.scheduler.ended(row)
                    del running.rows[index]
                del self._used[index]
        running.rest()

    def _fail(self, error: Exception) -> None:
        """Tells all who wrote, and begins anew: what is on the device may be lost."""
        self.failures += 1
        jobs, self._jobs = list(self._jobs.values()), {}
        for job in jobs:
            self._grammars.leave(job.place)
        self._used.clear()
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


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """How many leading tokens are the same."""
    count = min(len(a), len(b))
    if list(a[:count]) == list(b[:count]):
        return count
    return next(i for i in range(count) if a[i] != b[i])
