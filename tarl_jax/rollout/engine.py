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
import time
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from tarl_jax.config import ModelConfig, RolloutConfig
from tarl_jax.models import decoder
from tarl_jax.models.lora import join
from tarl_jax.rollout.compiled import Compiled
from tarl_jax.rollout.grammar import Grammar
from tarl_jax.rollout.lanes import Callbacks, lanes_on, play_in_lanes
from tarl_jax.rollout.paged_compiled import PagedPrograms, in_pages
from tarl_jax.rollout.paged_running import PagedRunning
from tarl_jax.rollout.prepared import Ready
from tarl_jax.rollout.running import EngineStats, Running
from tarl_jax.rollout.sampling import Sampling, Truncation
from tarl_jax.rollout.scheduler import Row, SpokenInputs, key_of
from tarl_jax.rollout.workers import POLL, Dialogue, Turn, Unfinished, Workers

T = TypeVar("T")
AHEAD = 4  # times the slots: dialogues under way at most, where rollout.in_flight is 0


@dataclasses.dataclass
class _Play:
    """What one call of `run` works on."""

    run: Running | PagedRunning
    workers: Workers
    sampling: Sampling
    queue: list[int]  # dialogues that are not begun, the next one last
    starved: bool = False  # nothing could be written when last looked at, and no answer came
    # What rows hear, by clip.
    spoken: weakref.WeakValueDictionary[int, np.ndarray] = dataclasses.field(
        default_factory=weakref.WeakValueDictionary
    )


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
        burst: int = 0,
        ids: int = 0,
    ):
        self._lanes = lanes_on(mesh, config, model)
        each = -(-config.slots // self._lanes), -(-config.parked // self._lanes)
        self._config = config = dataclasses.replace(config, slots=each[0], parked=each[1])
        self._dtype = model.dtype
        self.programs: Compiled | PagedPrograms = (
            PagedPrograms(model, config, stop_id, mesh, grammar, burst, ids)
            if in_pages(config, mesh)
            else Compiled(model, config, stop_id, mesh, grammar, least, burst, ids)
        )
        self._under_way = -(-config.in_flight // self._lanes) or AHEAD * self.programs.slots
        self._pool = ThreadPoolExecutor(self._under_way * self._lanes, "dialogue")

    def ready(self, trained: decoder.Params, frozen: decoder.Params) -> Ready:
        """A policy, in these two parts, for `run`; the caller may give up `trained` then.

        One that plays while another one is trained is handed over so, once and whole.
        """
        if isinstance(self.programs, PagedPrograms):  # which take as it is what has their dtype
            trained = jax.tree.map(
                lambda x: jnp.copy(x) if x.dtype == self._dtype else x, trained
            )
        return Ready(jax.block_until_ready(self.programs.prepare(join(frozen, trained))))

    def run(
        self,
        params: decoder.Params | Ready,
        episodes: Sequence[Dialogue],
        temperature: float,
        progress: Callable[[int, int], None] | None = None,
        *,
        ended: Callable[[Dialogue], None] | None = None,
        seconds: float = 0.0,
        enough: Callable[[], bool] = lambda: True,
        unfinished: Sequence[Unfinished] = (),
        truncation: Truncation | None = None,
        leave: Callable[[], bool] | None = None,
    ) -> EngineStats:
        """Plays dialogues with the stacked `params`, or what `ready` made of them, until they end
        or the time is up.

        Args:
          temperature: 0: the likeliest tokens.
          progress: called after each tick with (dialogues ended, dialogues in all).
          ended: called with each dialogue of this process when it has ended.
          seconds: after which what has not ended is left in the statistics; 0: all are played.
          enough: asked when the time is up; the run goes on until it says True in one process.
          unfinished: of an earlier run, of this process's dialogues; played first.
          leave: asked after each tick; where it says True the time is up.
          truncation: what may be drawn; None: as `rollout.top_k`, `top_p` and `min_p` say.
        Raises: what a dialogue raised.
        """
        begun = time.perf_counter()
        c = self._config
        cut = truncation or Truncation(c.top_k, c.top_p, c.min_p)
        sampling = Sampling(temperature, cut.top_k, cut.top_p, cut.min_p)
        policy = params if isinstance(params, Ready) else Ready(self.programs.prepare(params))
        shares = [
            (_part(unfinished, lane, self._lanes), _part(episodes, lane, self._lanes))
            for lane in range(self._lanes)
        ]
        parts = [share for share in shares if any(share)] or [([], [])]

        def play(lane: int, told: Callbacks) -> EngineStats:
            workers = Workers(*parts[lane], self._pool, seconds, told.enough, told.ended)
            return self._play(self._begin(policy, sampling, workers), told)

        told = Callbacks(ended, progress, leave, enough)
        if len(parts) == 1:
            stats = play(0, told)
        else:
            stats = play_in_lanes([len(old) + len(new) for old, new in parts], play, told)
        stats.seconds = time.perf_counter() - begun
        stats.host_seconds = (
            stats.seconds - stats.extend_seconds - stats.decode_seconds - stats.wait_seconds
        )
        return stats

    def _play(self, play: _Play, told: Callbacks) -> EngineStats:
        """Plays until all have ended or the time is up."""
        run, workers, stats = play.run, play.workers, play.run.stats
        while (play.queue or run.scheduler.going) and not workers.late and not stats.left:
            self._start_new(play)
            self._take_answers(play)
            run.admit()
            # When the time is up, nothing more is written than one tick's turns.
            if run.scheduler.writing and not (workers.late and stats.ticks):
                if not play.queue and run.scheduler.all_in_slots:
                    run.shrink()
                for row in run.write():
                    turn = Turn(row.tokens[-row.written :], row.log_probs, row.drawn_log_probs)
                    workers.turn(row.index, turn)
            stats.left = bool(told.leave and told.leave())
            if told.progress:
                told.progress(workers.count - len(play.queue) - len(run.rows), workers.count)
        if run.rows:
            self._take_answers(play)  # those of the last turns are not lost
        stats.unfinished = _left(play)
        stats.outside_seconds = workers.outside_seconds
        return stats

    def open(self, params: decoder.Params | Ready, slots: int = 0) -> Running | PagedRunning:
        """No dialogues yet, under `params` as of `run`, on so many slots; 0: on all."""
        own = params.params if isinstance(params, Ready) else self.programs.prepare(params)
        if isinstance(self.programs, PagedPrograms):
            return PagedRunning(self.programs, self._config, own)
        return Running(self.programs, self._config, own, slots or self.programs.slots)

    # ---- one tick of `run` ------------------------------------------------------------------

    def _begin(
        self, params: decoder.Params | Ready, sampling: Sampling, workers: Workers
    ) -> _Play:
        run = self.open(params, self.programs.bucket_rows(workers.count))
        run.stats.episodes = workers.count
        queue = [index for index in range(workers.count) if index not in workers.rows]
        play = _Play(run, workers, sampling, queue[::-1])
        for index, left in workers.rows.items():
            row = dataclasses.replace(
                left, index=index, sampling=sampling, fed=0, slot=None, place=None,
                blocks=[], pages=[], chain=[],
                spoken=[self._encode_again(play, sound) for sound in left.spoken],
            )
            run.rows[index] = row
            run.scheduler.begin(row)
        return play

    def _start_new(self, play: _Play) -> None:
        """Begins as many dialogues as there are slots that no row wants.

        A batch more each time that nothing could be written and no answer came.
        """
        run, workers = play.run, play.workers
        wanted = self.programs.slots if play.starved else run.scheduler.free_slots()
        for _ in range(min(wanted, self._room(play))):
            index = play.queue.pop()
            row = Row(index, workers.seeds[index], shared=workers.shared[index],
                      sampling=play.sampling, limit=self._config.max_turn_tokens)
            run.rows[index] = row
            run.scheduler.begin(row)
            workers.start(index)

    def _room(self, play: _Play) -> int:
        """How many more dialogues may be begun."""
        return max(min(len(play.queue), self._under_way - len(play.run.rows)), 0)

    def _take_answers(self, play: _Play) -> None:
        begun = time.perf_counter()
        run, workers = play.run, play.workers
        idle = not run.scheduler.writing and not run.scheduler.ready
        # Not for ever: `leave` may want to end the run.
        patience = (POLL if self._room(play) else 10 * POLL) if idle else 0.0
        arrived = workers.arrived(patience)
        play.starved = idle and not arrived
        for index, answer in arrived:
            row = run.rows[index]
            if answer is not None:
                run.stats.forced_tokens += len(answer.tokens)
                spoken = [self._encode(play, sound.first, sound.clip) for sound in answer.sounds]
                run.scheduler.answered(row, answer.tokens, answer.keep, spoken)
                if answer.dropped is not None:
                    row.dropped = answer.dropped
                continue
            run.scheduler.ended(row)
            del run.rows[index]
        if idle:
            run.stats.wait_seconds += time.perf_counter() - begun

    def _encode(self, play: _Play, first: int, clip: np.ndarray) -> SpokenInputs:
        """The clip as the decoder reads it; once for all who hear it at a time."""
        begun = time.perf_counter()
        key = key_of(clip)
        inputs = play.spoken.get(key)
        if inputs is None:
            inputs = play.spoken[key] = self.programs.hear(play.run.params, clip)
        play.run.stats.extend_seconds += time.perf_counter() - begun
        return SpokenInputs(first, inputs, clip, key)

    def _encode_again(self, play: _Play, sound: SpokenInputs) -> SpokenInputs:
        """Sound of an earlier run, of which the context may have lost the end."""
        fresh = self._encode(play, sound.first, sound.clip)
        return dataclasses.replace(fresh, inputs=fresh.inputs[: len(sound.inputs)])


def _part(whole: Sequence[T], lane: int, lanes: int) -> Sequence[T]:
    """The lane's part, of neighbours: those of a group begin alike."""
    return whole[len(whole) * lane // lanes : len(whole) * (lane + 1) // lanes]


def _left(play: _Play) -> list[Unfinished]:
    """What has not ended of this process's dialogues, in the order of the run."""
    left: list[Unfinished] = []
    rows, workers = play.run.rows, play.workers
    for index in sorted({*rows, *play.queue}):
        episode = workers.episode(index)
        if episode is not None:
            left.append(Unfinished(episode, rows.get(index), workers.waiting.get(index)))
    return left
