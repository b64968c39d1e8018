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
import time
from collections.abc import Callable, Sequence
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import lax
from jax.sharding import Mesh

from tarl_jax.config import ModelConfig, RolloutConfig
from tarl_jax.mesh import by_rows, replicated, round_up
from tarl_jax.models import decoder
from tarl_jax.models.cache import Cache, empty_cache, resize

# Programs that feed forced tokens: (columns, share of the batch's rows that they serve at a time).
CHUNKS = ((64, 4), (32, 2), (8, 1))
LENGTH_STEP = 256  # the cache grows by this many positions
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


@struct.dataclass
class EngineState:
    """What the device keeps between ticks.

    Attributes:
      cache: keys and values of everything fed so far.
      lengths: int32 [B]; tokens of each row in the cache.
      last: int32 [B]; each row's newest token, which is not in the cache yet.
      seeds: uint32 [B]; of each row's episode.
    """

    cache: Cache
    lengths: jax.Array
    last: jax.Array
    seeds: jax.Array


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
        self._extend = jax.jit(functools.partial(_extend, model), donate_argnums=1)
        self._decode = jax.jit(
            functools.partial(_decode, model, stop_id, config.max_turn_tokens),
            donate_argnums=1,
        )
        self._resize = jax.jit(_resize, static_argnums=2)
        self._unstack = jax.jit(decoder.unstack, out_shardings=replicated(mesh))

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
        params = self._unstack(params)
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
        params = self._unstack(params)
        longest = -(-self._config.max_episode_tokens // LENGTH_STEP) * LENGTH_STEP
        size, sizes = self._slots, []
        while size not in sizes:
            sizes.append(size)
            size = self._bucket_rows(size // 2)
        for size in sizes:
            state = self._empty(size)
            everyone = np.arange(size, dtype=np.int32)
            while True:
                for columns, share in CHUNKS:
                    shape = (max(size // share, self._mesh.size), columns)
                    state = self._feed_chunk(params, [None] * size, state, [], shape)
                state, _ = self._decode(
                    params, state, np.zeros(size, np.int32), np.int32(0), np.float32(1)
                )
                if size != sizes[-1]:
                    self._resize(state, everyone[: size // 2], _length(state))
                if _length(state) >= longest:
                    break
                state = self._resize(state, everyone, _length(state) + LENGTH_STEP)

    def _bucket_rows(self, wanted: int) -> int:
        """The smallest batch that holds `wanted` rows: the slots, halved as often as allowed."""
        size, floor = self._slots, max(self._slots // SHRINK_LIMIT, self._mesh.size)
        while size // 2 >= max(wanted, floor) and (size // 2) % self._mesh.size == 0:
            size //= 2
        return size

    def _empty(self, rows: int) -> EngineState:
        state = EngineState(
            cache=empty_cache(self._model, rows, LENGTH_STEP),
            lengths=jnp.zeros(rows, jnp.int32),
            last=jnp.zeros(rows, jnp.int32),
            seeds=jnp.zeros(rows, jnp.uint32),
        )
        return jax.device_put(state, by_rows(self._mesh))

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
        need = max(row.length + len(row.pending) for row in rows if row is not None)
        need += self._config.max_turn_tokens
        while len(rows) > size:
            idle = [slot for slot, row in enumerate(rows) if row is None]
            keep = (busy + idle)[: len(rows) // 2]
            state = self._resize(state, np.array(keep, np.int32), _length(state))
            rows = [rows[slot] for slot in keep]
            busy = [slot for slot, row in enumerate(rows) if row is not None]
        while _length(state) < need:
            everyone = np.arange(len(rows), dtype=np.int32)
            state = self._resize(state, everyone, _length(state) + LENGTH_STEP)
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
        waiting = sorted(
            (slot for slot, row in enumerate(rows) if row is not None and row.pending),
            key=lambda slot: -len(rows[slot].pending),
        )
        while waiting:
            longest = len(rows[waiting[0]].pending) - 1
            # The smallest program that feeds the longest in one go; shorter ones fill it up.
            columns, share = next((c for c in reversed(CHUNKS) if c[0] >= longest), CHUNKS[0])
            places = max(len(rows) // share, self._mesh.size)
            chosen, waiting = waiting[:places], waiting[places:]
            state = self._feed_chunk(params, rows, state, chosen, (places, columns))
            waiting = sorted(
                [slot for slot in chosen if rows[slot].pending] + waiting,
                key=lambda slot: -len(rows[slot].pending),
            )
        jax.block_until_ready(state.lengths)
        stats.extend_seconds += time.perf_counter() - begun
        return state

    def _feed_chunk(
        self,
        params: decoder.Params,
        rows: list[_Row | None],
        state: EngineState,
        chosen: list[int],
        shape: tuple[int, int],
    ) -> EngineState:
        """Feeds up to a chunk of the chosen slots' pending tokens, all but each one's last."""
        places, columns = shape
        slots = np.full(places, len(rows), np.int32)  # beyond the batch: a filler
        tokens = np.zeros(shape, np.int32)
        used, last = np.zeros(places, np.int32), np.zeros(places, np.int32)
        fresh, seeds = np.zeros(places, bool), np.zeros(places, np.uint32)
        for place, slot in enumerate(chosen):
            row = rows[slot]
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
            if ended[slot]:
                self._end_turn(rows, slot, stats)
        return state

    def _end_turn(self, rows: list[_Row | None], slot: int, stats: EngineStats) -> None:
        row = rows[slot]
        answer = row.episode.turn(row.ids, row.log_probs)
        if answer is None:
            rows[slot] = None
            return
        stats.forced_tokens += len(answer)
        row.pending = [row.ids[-1], *answer]
        row.ids, row.log_probs = [], []


def _extend(
    model: ModelConfig,
    params: decoder.Params,
    state: EngineState,
    slots: jax.Array,
    tokens: jax.Array,
    used: jax.Array,
    last: jax.Array,
    fresh: jax.Array,
    seeds: jax.Array,
) -> EngineState:
    """Writes `used` of the `tokens` [B, C] behind what the cache holds of `slots`.

    A fresh slot starts over at position 0 with a new seed; `last` becomes the slot's newest token.
    """
    start = jnp.where(fresh, 0, state.lengths.at[slots].get(mode="clip"))
    _, cache = decoder.cached_step(params, model, state.cache, tokens, start, slots)
    kept_seeds = state.seeds.at[slots].get(mode="clip")
    return EngineState(
        cache=cache,
        lengths=state.lengths.at[slots].set(start + used, mode="drop"),
        last=state.last.at[slots].set(last, mode="drop"),
        seeds=state.seeds.at[slots].set(jnp.where(fresh, seeds, kept_seeds), mode="drop"),
    )


def _decode(
    model: ModelConfig,
    stop_id: int,
    limit: int,
    params: decoder.Params,
    state: EngineState,
    room: jax.Array,
    patience: jax.Array,
    temperature: jax.Array,
) -> tuple[EngineState, tuple[jax.Array, jax.Array, jax.Array, jax.Array]]:
    """Samples up to `room` tokens per row, until at most `patience` rows still write.

    Returns the state and (tokens [B, T], their log-probs [B, T], counts [B], turn ended [B]).
    """
    rows = jnp.arange(room.shape[0])
    keys = jax.vmap(jax.random.key)(state.seeds)

    def going(carry):
        step, _, writing, *_ = carry
        running = jnp.sum(writing)
        return (step < limit) & (running > 0) & ((running > patience) | (step == 0))

    def step_once(carry):
        step, state, writing, tokens, log_probs, counts = carry
        hidden, cache = decoder.cached_step(
            params, model, state.cache, state.last[:, None], state.lengths
        )
        token, log_prob = sample(decoder.logits(params, hidden[:, 0]), keys, state.lengths,
                                 temperature)
        column = jnp.where(writing, counts, limit)
        tokens = tokens.at[rows, column].set(token, mode="drop")
        log_probs = log_probs.at[rows, column].set(log_prob, mode="drop")
        counts = counts + writing
        state = state.replace(
            cache=cache,
            lengths=state.lengths + writing,
            last=jnp.where(writing, token, state.last),
        )
        writing = writing & (token != stop_id) & (counts < room)
        return step + 1, state, writing, tokens, log_probs, counts

    shape = (room.shape[0], limit)
    carry = (
        0,
        state,
        room > 0,
        jnp.zeros(shape, jnp.int32),
        jnp.zeros(shape, jnp.float32),
        jnp.zeros(shape[0], jnp.int32),
    )
    _, state, writing, tokens, log_probs, counts = lax.while_loop(going, step_once, carry)
    return state, (tokens, log_probs, counts, ~writing)


def sample(
    scores: jax.Array, keys: jax.Array, positions: jax.Array, temperature: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """One token per row from softmax(scores / temperature), and its log-probability.

    Args:
      scores: [B, V].
      keys: one PRNG key per row.
      positions: [B]; folded into the row's key, so that a draw depends on nothing else.
    """
    log_probs = jax.nn.log_softmax(scores / temperature, axis=-1)
    noise = jax.vmap(
        lambda key, position: jax.random.gumbel(
            jax.random.fold_in(key, position), scores.shape[-1:]
        )
    )(keys, positions)
    token = jnp.argmax(log_probs + noise, axis=-1)
    return token, jnp.take_along_axis(log_probs, token[:, None], axis=-1)[:, 0]


def _length(state: EngineState) -> int:
    """Positions that the cache has room for."""
    return state.cache[0]["k"].shape[2]


def _resize(state: EngineState, keep: jax.Array, length: int) -> EngineState:
    return EngineState(
        cache=resize(state.cache, keep, length),
        lengths=state.lengths[keep],
        last=state.last[keep],
        seeds=state.seeds[keep],
    )
