"""The rollout engine: many dialogues in lockstep on the device, the cache kept from turn to turn.

Each row (slot) holds one dialogue. A tick is: feed the tokens that the environment wrote to the
rows that have some (`extend`, in chunks of fixed size), then sample until nearly every row has
ended its turn (`decode`). Rows whose dialogue has ended take the next one, and when none is left
the batch halves, so that a few long dialogues do not pay for all slots. Shapes come from short
lists of buckets, all compiled at the first use and never again.

Sampling is keyed by (episode seed, position): an episode's tokens do not depend on the slot or
the batch it ran in.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from tarl_jax.config import ModelConfig, RolloutConfig
from tarl_jax.mesh import by_rows, place_shapes, round_up, row_shards, sharding, tree_shardings
from tarl_jax.models import decoder
from tarl_jax.models.cache import empty_cache
from tarl_jax.rollout import programs
from tarl_jax.rollout.programs import EngineState

# Programs that feed forced tokens: (columns, share of the batch's rows that they serve at a time).
CHUNKS = ((48, 8), (16, 4))
SHORTEST = 128  # positions of the smallest cache
SHRINK_LIMIT = 4  # the batch is not halved below slots / SHRINK_LIMIT


class Dialogue(Protocol):
    """What the engine needs of an episode."""

    seed: int

    def start(self) -> list[int]:
        """The tokens before the first agent turn."""
        ...

    def turn(self, ids: list[int], log_probs: list[float]) -> list[int] | None:
        """Takes a sampled turn; returns the tokens that answer it, or None if it was the last."""
        ...


@dataclasses.dataclass
class EngineStats:
    """Of one `run`. Seconds are host wall time."""

    episodes: int = 0
    sampled_tokens: int = 0
    forced_tokens: int = 0
    ticks: int = 0
    extend_seconds: float = 0.0
    decode_seconds: float = 0.0
    host_seconds: float = 0.0
    seconds: float = 0.0

    @property
    def tokens_per_second(self) -> float:
        return (self.sampled_tokens + self.forced_tokens) / max(self.seconds, 1e-9)


@dataclasses.dataclass
class _Row:
    """Host side of a slot."""

    episode: Dialogue
    pending: list[int]  # fed in order; the last one becomes `last`
    length: int = 0
    fresh: bool = True  # its seed and length have not been set on the device yet
    ids: list[int] = dataclasses.field(default_factory=list)  # of the turn being written
    log_probs: list[float] = dataclasses.field(default_factory=list)


class Engine:
    """Runs dialogues with one set of parameters at a time; see the module's docstring."""

    def __init__(self, model: ModelConfig, config: RolloutConfig, stop_id: int, mesh: Mesh):
        self._model = model
        self._config = config
        self._mesh = mesh
        self._slots = round_up(config.slots, mesh)
        # Without out_shardings XLA would choose, e.g. a replicated cache, and compile again for it.
        rows = EngineState(
            cache=sharding(mesh, "rows", "kv_heads"),
            lengths=by_rows(mesh), last=by_rows(mesh), seeds=by_rows(mesh),
        )
        self._state_shardings = rows
        self._extend = jax.jit(
            functools.partial(programs.extend, model), donate_argnums=1, out_shardings=rows
        )
        self._decode = jax.jit(
            functools.partial(programs.decode, model, stop_id, config.max_turn_tokens),
            donate_argnums=1,
            out_shardings=(rows, by_rows(mesh)),
        )
        self._resize = jax.jit(programs.resize, static_argnums=2, out_shardings=rows)
        self._unstack = jax.jit(lambda p: decoder.unstack(decoder.cast(p, model.dtype)))

    @property
    def compilations(self) -> int:
        """Programs compiled so far."""
        return sum(f._cache_size() for f in (self._extend, self._decode, self._resize))

    def run(
        self,
        params: decoder.Params,
        episodes: Sequence[Dialogue],
        temperature: float,
        progress: Callable[[int, int], None] | None = None,
    ) -> EngineStats:
        """Plays all episodes to their end with the stacked `params`.

        progress: called after each tick with (episodes ended, episodes in all).
        """
        begun = time.perf_counter()
        stats = EngineStats(episodes=len(episodes))
        params = self._prepare(params)
        queue = list(reversed(episodes))
        rows: list[_Row | None] = [None] * min(self._slots, self._bucket_rows(len(episodes)))
        state = self._empty(len(rows))
        while queue or any(rows):
            self._refill(rows, queue, stats)
            rows, state = self._fit(rows, state, more=bool(queue))
            state = self._feed(params, rows, state, stats)
            state = self._sample(params, rows, state, temperature, stats)
            if progress:
                going = len(queue) + sum(row is not None for row in rows)
                progress(len(episodes) - going, len(episodes))
        stats.seconds = time.perf_counter() - begun
        stats.host_seconds = stats.seconds - stats.extend_seconds - stats.decode_seconds
        return stats

    def compile(self, params: decoder.Params) -> None:
        """Compiles every program that any dialogues can need, so that no run compiles later."""
        params = self._prepare(params)
        sizes = [self._slots]
        while (smaller := self._bucket_rows(sizes[-1] // 2)) < sizes[-1]:
            sizes.append(smaller)
        lengths = [SHORTEST]
        while lengths[-1] < self._config.max_episode_tokens:
            lengths.append(_grown(lengths[-1]))
        shapes = [(n, s) for n in sizes for s in lengths]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            # The list collects what a thread raised.
            list(pool.map(lambda s: self._compile_shape(params, s, sizes, lengths), shapes))

    def _compile_shape(
        self,
        params: decoder.Params,
        shape: tuple[int, int],
        sizes: list[int],
        lengths: list[int],
    ) -> None:
        """Runs every program once at one shape (rows, positions) of the state."""
        size, length = shape
        state = self._empty(size, length)
        if length < lengths[-1]:
            self._resize(state, np.arange(size, dtype=np.int32), _grown(length))
        if size > sizes[-1]:
            self._resize(state, np.arange(size // 2, dtype=np.int32), length)
        for columns, share in CHUNKS:
            chunk = (max(size // share, row_shards(self._mesh)), columns)
            state = self._feed_chunk(params, size, state, [], chunk)
        self._decode(params, state, np.zeros(size, np.int32), np.int32(0), np.float32(1))

    def lower(self, vocab_size: int, length: int) -> dict[str, Any]:
        """The programs at full batch and a cache of `length`, lowered but not compiled.

        Needs no arrays and none of the devices: a mesh of devices that are elsewhere will do.
        """
        shapes = jax.eval_shape(
            lambda: decoder.unstack(decoder.cast(
                decoder.init_params(self._model, vocab_size, jax.random.key(0)), self._model.dtype
            ))
        )
        params = place_shapes(shapes, tree_shardings(self._mesh, decoder.logical_axes(shapes)))
        rows, cache = by_rows(self._mesh), self._state_shardings.cache
        state = jax.eval_shape(lambda: self._zeros(self._slots, length))
        state = place_shapes(state, EngineState(
            jax.tree.map(lambda _: cache, state.cache), rows, rows, rows
        ))

        def array(*shape: int, dtype: Any = jnp.int32) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(shape, dtype, sharding=rows if shape else None)

        columns, share = CHUNKS[0]
        places = max(self._slots // share, row_shards(self._mesh))
        one = array(places)
        return {
            "prefill": self._extend.lower(
                params, state, one, array(places, columns), one, one,
                array(places, dtype=jnp.bool), array(places, dtype=jnp.uint32),
            ),
            "decode": self._decode.lower(
                params, state, array(self._slots), array(), array(dtype=jnp.float32)
            ),
        }

    def _prepare(self, params: decoder.Params) -> decoder.Params:
        """The stacked parameters of training as decoding takes them, on the engine's mesh."""
        params = self._unstack(params)
        axes = decoder.logical_axes(params)
        return jax.device_put(params, tree_shardings(self._mesh, axes))

    def _bucket_rows(self, wanted: int) -> int:
        """The smallest batch that holds `wanted` rows: the slots, halved as often as allowed."""
        size, floor = self._slots, max(self._slots // SHRINK_LIMIT, row_shards(self._mesh))
        while size // 2 >= max(wanted, floor) and (size // 2) % row_shards(self._mesh) == 0:
            size //= 2
        return size

    def _empty(self, rows: int, length: int = SHORTEST) -> EngineState:
        return jax.device_put(self._zeros(rows, length), self._state_shardings)

    def _zeros(self, rows: int, length: int) -> EngineState:
        return EngineState(
            cache=empty_cache(self._model, rows, length),
            lengths=jnp.zeros(rows, jnp.int32),
            last=jnp.zeros(rows, jnp.int32),
            seeds=jnp.zeros(rows, jnp.uint32),
        )

    def _refill(self, rows: list[_Row | None], queue: list[Dialogue], stats: EngineStats) -> None:
        for slot, row in enumerate(rows):
            if row is None and queue:
                episode = queue.pop()
                prompt = episode.start()
                stats.forced_tokens += len(prompt)
                rows[slot] = _Row(episode, prompt)

    def _fit(
        self, rows: list[_Row | None], state: EngineState, more: bool
    ) -> tuple[list[_Row | None], EngineState]:
        """Halves the batch where it is mostly idle; grows the cache where a row may outgrow it."""
        busy = [slot for slot, row in enumerate(rows) if row is not None]
        size = len(rows) if more else min(len(rows), self._bucket_rows(len(busy)))
        limit = self._config.max_turn_tokens
        need = max(
            row.length + len(row.pending) + limit - len(row.ids) for row in rows if row is not None
        )
        while len(rows) > size:
            idle = [slot for slot, row in enumerate(rows) if row is None]
            keep = (busy + idle)[: len(rows) // 2]
            state = self._resize(state, np.array(keep, np.int32), _length(state))
            rows = [rows[slot] for slot in keep]
            busy = [slot for slot, row in enumerate(rows) if row is not None]
        while _length(state) < need:
            everyone = np.arange(len(rows), dtype=np.int32)
            state = self._resize(state, everyone, _grown(_length(state)))
        return rows, state

    def _feed(
        self,
        params: decoder.Params,
        rows: list[_Row | None],
        state: EngineState,
        stats: EngineStats,
    ) -> EngineState:
        """Feeds all pending tokens but each row's last, which sampling feeds."""
        begun = time.perf_counter()
        waiting = _longest_first(
            (slot, row) for slot, row in enumerate(rows) if row is not None and row.pending
        )
        while waiting:
            longest = len(waiting[0][1].pending) - 1
            # The smallest program that feeds the longest in one go; shorter ones fill it up.
            columns, share = next((c for c in reversed(CHUNKS) if c[0] >= longest), CHUNKS[0])
            places = max(len(rows) // share, row_shards(self._mesh))
            chosen, waiting = waiting[:places], waiting[places:]
            state = self._feed_chunk(params, len(rows), state, chosen, (places, columns))
            waiting = _longest_first([one for one in chosen if one[1].pending] + waiting)
        jax.block_until_ready(state.lengths)
        stats.extend_seconds += time.perf_counter() - begun
        return state

    def _feed_chunk(
        self,
        params: decoder.Params,
        batch: int,
        state: EngineState,
        chosen: list[tuple[int, _Row]],
        shape: tuple[int, int],
    ) -> EngineState:
        """Feeds up to a chunk of the chosen slots' pending tokens, all but each one's last."""
        places, columns = shape
        slots = np.full(places, batch, np.int32)  # beyond the batch: a filler
        tokens = np.zeros(shape, np.int32)
        used, last = np.zeros(places, np.int32), np.zeros(places, np.int32)
        fresh, seeds = np.zeros(places, bool), np.zeros(places, np.uint32)
        for place, (slot, row) in enumerate(chosen):
            part = row.pending[:-1][:columns]
            slots[place], used[place], last[place] = slot, len(part), row.pending[-1]
            tokens[place, : len(part)] = part
            fresh[place], seeds[place] = row.fresh, row.episode.seed
            row.pending = row.pending[len(part):] if len(part) < len(row.pending) - 1 else []
            row.length += len(part)
            row.fresh = False
        return self._extend(params, state, slots, tokens, used, last, fresh, seeds)

    def _sample(
        self,
        params: decoder.Params,
        rows: list[_Row | None],
        state: EngineState,
        temperature: float,
        stats: EngineStats,
    ) -> EngineState:
        begun = time.perf_counter()
        limit = self._config.max_turn_tokens
        room = np.array([limit - len(row.ids) if row else 0 for row in rows], np.int32)
        patience = int(self._config.straggler_fraction * np.count_nonzero(room))
        state, out = self._decode(
            params, state, room, np.int32(patience), np.float32(temperature)
        )
        tokens, log_probs, counts, ended = jax.device_get(out)
        stats.decode_seconds += time.perf_counter() - begun
        stats.ticks += 1
        for slot, row in enumerate(rows):
            if row is None:
                continue
            n = int(counts[slot])
            row.length += n
            row.ids += tokens[slot, :n].tolist()
            row.log_probs += log_probs[slot, :n].tolist()
            stats.sampled_tokens += n
            if ended[slot] and not self._end_turn(row, stats):
                rows[slot] = None
        return state

    def _end_turn(self, row: _Row, stats: EngineStats) -> bool:
        """Returns whether the dialogue goes on."""
        answer = row.episode.turn(row.ids, row.log_probs)
        if answer is None:
            return False
        stats.forced_tokens += len(answer)
        row.pending = [row.ids[-1], *answer]
        row.ids, row.log_probs = [], []
        return True


def _longest_first(waiting: Iterable[tuple[int, _Row]]) -> list[tuple[int, _Row]]:
    """The (slot, row) pairs, those with the most pending tokens first."""
    return sorted(waiting, key=lambda one: -len(one[1].pending))


def _grown(length: int) -> int:
    """The next size of a cache: few sizes, and at most twice as large as needed."""
    return length + SHORTEST if length < 4 * SHORTEST else 2 * length


def _length(state: EngineState) -> int:
    """Positions that the cache has room for."""
    return state.cache[0]["k"].shape[2]
