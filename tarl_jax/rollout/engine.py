"""The rollout engine: many dialogues in lockstep on the device, the cache kept from turn to turn.

Each row (slot) holds one dialogue. A tick is: take the answers that have come, feed the tokens that
the environment wrote to the rows that have some (`extend`, in chunks of fixed size), then sample
until nearly every row has ended its turn (`decode`). Rows whose dialogue has ended take the next
one, rows that wait for a slow answer make room, and when none is left the batch halves, so that a
few long dialogues do not pay for all slots. Shapes come from short lists of buckets, all compiled
before the first tick and never again.

Sampling is keyed by (episode seed, position): an episode's tokens do not depend on the slot or the
batch it ran in. With several processes all run the same programs on the same batch; each plays the
dialogues that it was given (`workers.py`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import time
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
from jax.sharding import Mesh

from tarl_jax.config import ModelConfig, RolloutConfig
from tarl_jax.models import decoder
from tarl_jax.models.cache import Cache
from tarl_jax.rollout.chunks import fitting
from tarl_jax.rollout.compiled import PREFIXES, Compiled, batch_of, length_of
from tarl_jax.rollout.grammar import Grammar
from tarl_jax.rollout.programs import EngineState
from tarl_jax.rollout.sampling import Truncation
from tarl_jax.rollout.scheduler import Row, Scheduler, SpokenInputs
from tarl_jax.rollout.workers import POLL, Dialogue, Pending, Turn, Workers

AHEAD = 4  # times the slots: dialogues under way at most, where rollout.in_flight is 0


@dataclasses.dataclass
class EngineStats:
    """Of one `run`. Seconds are host wall time.

    Attributes:
      fed_tokens: forced tokens that went through the model; fewer than `forced_tokens` where
        prefixes were copied, more where caches were dropped.
      fed_places: token places of the programs that fed them.
      row_steps: decode steps times the rows of the batch; `sampled_tokens` of them drew a token.
      wait_seconds: in which nothing could be written, for want of answers.
      outside_seconds: that this process's dialogues waited for the outside, added up.
      unfinished: dialogues of this process that the run's time was too short for.
    """

    episodes: int = 0
    sampled_tokens: int = 0
    forced_tokens: int = 0
    fed_tokens: int = 0
    fed_places: int = 0
    row_steps: int = 0
    ticks: int = 0
    extend_seconds: float = 0.0
    decode_seconds: float = 0.0
    wait_seconds: float = 0.0
    outside_seconds: float = 0.0
    host_seconds: float = 0.0
    seconds: float = 0.0
    unfinished: list[Unfinished] = dataclasses.field(default_factory=list)

    @property
    def tokens_per_second(self) -> float:
        return (self.sampled_tokens + self.forced_tokens) / max(self.seconds, 1e-9)

    def metrics(self) -> dict[str, float]:
        """What a run's metrics hold of it."""
        return {
            "rollout/tokens_per_second": self.tokens_per_second,
            "rollout/fed_per_second": self.fed_tokens / max(self.extend_seconds, 1e-9),
            "rollout/sampled_per_second": self.sampled_tokens / max(self.decode_seconds, 1e-9),
            "rollout/slots_used": self.sampled_tokens / max(self.row_steps, 1),
            "rollout/chunks_filled": self.fed_tokens / max(self.fed_places, 1),
            "rollout/ticks": float(self.ticks),
            "rollout/unfinished": float(len(self.unfinished)),
            "seconds/extend": self.extend_seconds,
            "seconds/decode": self.decode_seconds,
            "seconds/wait": self.wait_seconds,
            "seconds/outside": self.outside_seconds,
        }


@dataclasses.dataclass(frozen=True)
class Unfinished:
    """A dialogue that another run can go on with, under other parameters.

    row: as far as it came; None if it was not begun. answer: what it waits for, if it does.
    """

    episode: Dialogue
    row: Row | None
    answer: Pending | None


@dataclasses.dataclass
class _Run:
    """What one call of `run` works on."""

    params: decoder.Params
    scheduler: Scheduler
    workers: Workers
    state: EngineState
    store: Cache | None
    queue: list[int]  # dialogues that are not begun, the next one last
    stats: EngineStats
    rows: dict[int, Row]  # under way, by index
    starved: bool  # nothing could be written when last looked at, and no answer came
    spoken: weakref.WeakValueDictionary[int, np.ndarray]  # what rows hear, by clip


class Engine:
    """Runs dialogues with one set of parameters at a time; see the module's docstring.

    Attributes:
      programs: what runs on the device.
    """

    def __init__(
        self,
        model: ModelConfig,
        config: RolloutConfig,
        stop_id: int | tuple[int, ...],
        mesh: Mesh,
        grammar: Grammar | None = None,
        least: int = 0,
    ):
        self._config = config
        self.programs = Compiled(model, config, stop_id, mesh, grammar, least)
        self._under_way = config.in_flight or AHEAD * self.programs.slots
        self._pool = ThreadPoolExecutor(self._under_way, "dialogue")

    def run(
        self,
        params: decoder.Params,
        episodes: Sequence[Dialogue],
        temperature: float,
        progress: Callable[[int, int], None] | None = None,
        *,
        ended: Callable[[Dialogue], None] | None = None,
        seconds: float = 0.0,
        unfinished: Sequence[Unfinished] = (),
        truncation: Truncation | None = None,
    ) -> EngineStats:
        """Plays dialogues with the stacked `params`, until they end or the time is up.

        Args:
          temperature: 0: the likeliest tokens.
          progress: called after each tick with (dialogues ended, dialogues in all).
          ended: called with each dialogue of this process when it has ended.
          seconds: after which what has not ended is left in the statistics; 0: all are played.
          unfinished: of an earlier run; played first.
          truncation: what may be drawn; None: as `rollout.top_k`, `top_p` and `min_p` say.
        Raises: what a dialogue raised.
        """
        begun = time.perf_counter()
        run = self._begin(params, episodes, unfinished, seconds)
        c = self._config
        cut = truncation or Truncation(c.top_k, c.top_p, c.min_p)
        while (run.queue or run.scheduler.going) and not run.workers.late:
            self._start_new(run)
            self._take_answers(run, ended)
            self._admit(run)
            if run.scheduler.writing:
                self._fit(run)
                self._feed(run)
                self._sample(run, temperature, cut)
            if progress:
                progress(run.workers.count - len(run.queue) - len(run.rows), run.workers.count)
        if run.rows:
            self._take_answers(run, ended)  # those of the last turns are not lost
        stats = run.stats
        stats.unfinished = self._leave(run)
        stats.seconds = time.perf_counter() - begun
        stats.outside_seconds = run.workers.outside_seconds
        stats.host_seconds = (
            stats.seconds - stats.extend_seconds - stats.decode_seconds - stats.wait_seconds
        )
        return stats

    # ---- one tick ---------------------------------------------------------------------------

    def _begin(
        self,
        params: decoder.Params,
        episodes: Sequence[Dialogue],
        unfinished: Sequence[Unfinished],
        seconds: float,
    ) -> _Run:
        workers = Workers([u.episode for u in unfinished] + list(episodes), self._pool, seconds)
        size = self.programs.bucket_rows(workers.count)
        share, parked = self._config.share_prefix, self._config.parked
        run = _Run(
            params=self.programs.prepare(params),
            scheduler=Scheduler(size, parked, PREFIXES if share else 0, share),
            workers=workers,
            state=self.programs.empty(size),
            store=self.programs.empty_store(),
            queue=list(range(workers.count))[::-1],
            stats=EngineStats(episodes=workers.count),
            rows={},
            starved=False,
            spoken=weakref.WeakValueDictionary(),
        )
        for index, left in enumerate(unfinished):
            if left.row is not None:
                run.queue.remove(index)
                row = dataclasses.replace(
                    left.row, index=index, fed=0, slot=None, place=None, blocks=[],
                    spoken=[self._encode_again(run, sound) for sound in left.row.spoken],
                )
                run.rows[index] = row
                run.scheduler.begin(row)
                if left.answer is not None:
                    workers.resume(index, left.answer)
        return run

    def _start_new(self, run: _Run) -> None:
        """Begins as many dialogues as there are slots that no row wants.

        A batch more each time that nothing could be written and no answer came.
        """
        wanted = self.programs.slots if run.starved else run.scheduler.free_slots()
        for _ in range(min(wanted, self._room(run))):
            index = run.queue.pop()
            workers = run.workers
            row = Row(index, workers.seeds[index], shared=workers.shared[index])
            run.rows[index] = row
            run.scheduler.begin(row)
            workers.start(index)

    def _room(self, run: _Run) -> int:
        """How many more dialogues may be begun."""
        return max(min(len(run.queue), self._under_way - len(run.rows)), 0)

    def _take_answers(self, run: _Run, ended: Callable[[Dialogue], None] | None) -> None:
        begun = time.perf_counter()
        idle = not run.scheduler.writing and not run.scheduler.ready
        patience = (POLL if self._room(run) else float("inf")) if idle else 0.0
        arrived = run.workers.arrived(patience)
        run.starved = idle and not arrived
        for index, answer in arrived:
            row = run.rows[index]
            if answer is not None:
                run.stats.forced_tokens += len(answer.tokens)
                spoken = [self._encode(run, sound.first, sound.clip) for sound in answer.sounds]
                run.scheduler.answered(row, answer.tokens, answer.keep, spoken)
                continue
            run.scheduler.ended(row)
            del run.rows[index]
            episode = run.workers.episode(index)
            if ended and episode is not None:
                ended(episode)
        if idle:
            run.stats.wait_seconds += time.perf_counter() - begun

    def _encode(self, run: _Run, first: int, clip: np.ndarray) -> SpokenInputs:
        """The clip as the decoder reads it; once for all who hear it at a time."""
        begun = time.perf_counter()
        key = ~int.from_bytes(hashlib.sha256(clip.tobytes()).digest()[:7])
        inputs = run.spoken.get(key)
        if inputs is None:
            inputs = run.spoken[key] = self.programs.encode_clip(run.params, clip)
        run.stats.extend_seconds += time.perf_counter() - begun
        return SpokenInputs(first, inputs, clip, key)

    def _encode_again(self, run: _Run, sound: SpokenInputs) -> SpokenInputs:
        """Sound of an earlier run, of which the context may have lost the end."""
        fresh = self._encode(run, sound.first, sound.clip)
        return dataclasses.replace(fresh, inputs=fresh.inputs[: len(sound.inputs)])

    def _admit(self, run: _Run) -> None:
        moves = run.scheduler.admit()
        run.store = self.programs.park(run.state, run.store, moves.park)
        run.state = self.programs.unpark(run.state, run.store, moves.unpark)

    def _fit(self, run: _Run) -> None:
        """Halves the batch where it is mostly idle; grows the cache where a row may outgrow it."""
        scheduler = run.scheduler
        size = len(scheduler.slots)
        if not run.queue and scheduler.all_in_slots:
            size = min(size, self.programs.bucket_rows(len(scheduler.in_slots)))
        while len(scheduler.slots) > size:
            slots = scheduler.shrink(len(scheduler.slots) // 2)
            run.state = self.programs.keep(run.state, slots)
        limit = self._config.max_turn_tokens
        need = max(len(row.tokens) - 1 + limit - row.written for row in scheduler.writing)
        while length_of(run.state) < need:
            run.state, run.store = self.programs.lengthen(run.state, run.store)

    def _feed(self, run: _Run) -> None:
        """Feeds all pending tokens but each row's last, which sampling feeds."""
        begun = time.perf_counter()
        programs, stats, batch = self.programs, run.stats, batch_of(run.state)
        for part in run.scheduler.rounds():
            run.state = programs.share(run.state, part.from_slots)
            run.state = programs.unpark(run.state, run.store, part.from_store)
            waiting = _longest_first(part.rows)
            while waiting:
                longest = waiting[0].pending
                # The smallest program that feeds the longest in one go; shorter ones fill it up.
                columns, share = next(
                    (c for c in reversed(programs.chunks) if c[0] >= longest), programs.chunks[0]
                )
                places = programs.places(batch, share)
                chosen, waiting = fitting(waiting, batch, places, programs.shards)
                before = sum(row.fed for row in chosen)
                run.state = programs.extend(run.params, run.state, chosen, (places, columns))
                stats.fed_tokens += sum(row.fed for row in chosen) - before
                stats.fed_places += places * columns
                waiting = _longest_first([row for row in chosen if row.pending] + waiting)
            run.store = programs.park(run.state, run.store, part.keep)
        jax.block_until_ready(run.state.lengths)
        stats.extend_seconds += time.perf_counter() - begun

    def _sample(self, run: _Run, temperature: float, truncation: Truncation) -> None:
        begun = time.perf_counter()
        limit, slots = self._config.max_turn_tokens, run.scheduler.slots
        writing = run.scheduler.writing
        room = np.zeros(len(slots), np.int32)
        for row in writing:
            room[row.slot] = limit - row.written
        patience = int(self._config.straggler_fraction * len(writing))
        run.state, out = self.programs.decode(
            run.params, run.state, room, patience, temperature, truncation
        )
        stats = run.stats
        stats.decode_seconds += time.perf_counter() - begun
        stats.ticks += 1
        stats.row_steps += int(out.counts.max()) * len(slots)
        stats.sampled_tokens += int(out.counts.sum())
        for row in writing:
            slot = row.slot
            n = int(out.counts[slot])
            row.tokens += out.tokens[slot, :n].tolist()
            row.fed += n
            row.written += n
            row.log_probs += out.log_probs[slot, :n].tolist()
            row.drawn_log_probs += out.drawn_log_probs[slot, :n].tolist()
            row.syntax = int(out.syntax[slot])
            if out.ended[slot]:
                row.asking = True
                turn = Turn(row.tokens[-row.written :], row.log_probs, row.drawn_log_probs)
                run.workers.turn(row.index, turn)

    def _leave(self, run: _Run) -> list[Unfinished]:
        """What has not ended, in the order of the run."""
        left: list[Unfinished] = []
        for index in sorted({*run.rows, *run.queue}):
            episode = run.workers.episode(index)
            if episode is not None:
                row, answer = run.rows.get(index), run.workers.waiting.get(index)
                left.append(Unfinished(episode, row, answer))
        return left


def _longest_first(rows: Sequence[Row]) -> list[Row]:
    """Those with the most pending tokens first."""
    return sorted(rows, key=lambda row: -row.pending)
