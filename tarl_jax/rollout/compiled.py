"""The engine's programs, compiled: every shape that a run can need comes from short lists.

Shapes are (rows, positions of the cache): rows are the slots, halved a few times; positions grow in
buckets. All are compiled before the first tick, and none after.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from tarl_jax.config import ModelConfig, RolloutConfig
from tarl_jax.models import decoder
from tarl_jax.models.audio_inputs import clip_sizes, longest_clip, pieces_of, tokens_of
from tarl_jax.models.cache import Cache, empty_cache
from tarl_jax.parallel import hosts
from tarl_jax.parallel.mesh import (
    ROW_AXES,
    by_rows,
    place_shapes,
    round_up,
    row_shards,
    sharding,
    spec,
    tree_shardings,
)
from tarl_jax.rollout import chunks, programs
from tarl_jax.rollout.grammar import Grammar
from tarl_jax.rollout.programs import EngineState, Written
from tarl_jax.rollout.sampling import EVERYTHING, Truncation
from tarl_jax.rollout.scheduler import Row

# Programs that feed forced tokens: (columns, share of the batch's rows that they serve at a time).
CHUNKS = ((44, 8), (12, 4))
LONG_CHUNK = (256, 64)  # for prompts of thousands of tokens
LONG = 2048  # tokens of an episode from which on it is used
SHORTEST = 128  # positions of the smallest cache
SHRINK_LIMIT = 4  # the batch is not halved below slots / SHRINK_LIMIT
MOVES = 8  # caches that are moved at a time
PIECES = 4  # of sound, 2 s each, that are encoded at a time
_BEYOND = 2**31 - 1  # a row that no cache has
PREFIXES = 2  # shared prefixes that are kept, one per kind of task


class Compiled:
    """The programs of one model on one mesh, and the arrays that they work on.

    Attributes:
      slots: rows of the largest batch.
      shards: parts of the batch that stand on devices of their own.
      chunks: (columns, share of the rows) of the programs that feed tokens, the widest first.
      stop_ids: what ends a turn.
      burst: the most tokens of a row that one call of `decode` samples.

    Args of the constructor:
      least: tokens that every dialogue has; caches that do not hold them are not compiled for.
      burst: 0: as many as a turn has.
      ids: how many tokens of the model's vocabulary the tokenizer has; 0: all.
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
        self._model = model
        self._config = config
        self.stop_ids = (stop_id,) if isinstance(stop_id, int) else stop_id
        self._lengths = cache_lengths(config.max_episode_tokens, least)
        self._mesh = mesh
        self._grammar = None if grammar is None else hosts.put(grammar, sharding(mesh))
        self.slots = round_up(config.slots, mesh)
        self.chunks = CHUNKS if config.max_episode_tokens < LONG else (LONG_CHUNK, *CHUNKS)
        share = config.share_prefix > 0
        self._store_rows = round_up(config.parked + PREFIXES * share, mesh)
        # Without out_shardings XLA would choose, e.g. a replicated cache, and compile again for it.
        cache, whole = sharding(mesh, "rows", "kv_heads"), sharding(mesh)
        by = by_rows(mesh)
        rows = EngineState(cache=cache, lengths=by, last=by, seeds=by, dropped=by, syntax=by)
        self._state_shardings = rows
        self.shards = row_shards(mesh)
        extend = functools.partial(programs.extend, model)
        if self.shards > 1:
            # Each shard feeds rows of its own: a cache that is taken from another costs its length.
            extend = jax.shard_map(
                extend, mesh=mesh, in_specs=(PartitionSpec(), spec("rows"), spec("rows")),
                out_specs=spec("rows"), axis_names=set(ROW_AXES), check_vma=False,
            )
        self._extend = jax.jit(extend, donate_argnums=1, out_shardings=rows)
        self.burst = burst or config.max_turn_tokens
        self._decode = jax.jit(
            functools.partial(programs.decode, model, self.stop_ids, ids, self.burst),
            donate_argnums=2,
            out_shardings=(rows, whole),
        )
        self._resize = jax.jit(programs.resize, static_argnums=2, out_shardings=rows)
        self._move = jax.jit(programs.move, donate_argnums=0, out_shardings=cache)
        self._move_within = jax.jit(programs.move_within, donate_argnums=0, out_shardings=cache)
        self._lengthen = jax.jit(programs.lengthen, static_argnums=1, out_shardings=cache)
        self._zeros = jax.jit(self._new_state, static_argnums=(0, 1), out_shardings=rows)
        self._store = jax.jit(
            lambda length: empty_cache(model, self._store_rows, length), static_argnums=0,
            out_shardings=cache,
        )
        self._encode = jax.jit(functools.partial(programs.encode_clip, model), out_shardings=whole)
        self._unstack = jax.jit(lambda p: decoder.unstack(decoder.cast(p, model.dtype)))

    @property
    def shortest(self) -> int:
        """Positions of the smallest cache."""
        return self._lengths[0]

    @property
    def longest(self) -> int:
        """Positions of the largest cache."""
        return self._lengths[-1]

    @property
    def compilations(self) -> int:
        """Programs compiled so far."""
        jitted = (self._extend, self._decode, self._resize, self._move, self._move_within,
                  self._lengthen, self._zeros, self._store, self._encode)
        return sum(f._cache_size() for f in jitted)

    def use_grammar(self, grammar: Grammar) -> None:
        """What rows follow from now on; of other shapes than before it costs a compilation."""
        self._grammar = hosts.put(grammar, sharding(self._mesh))

    def compile(
        self, params: decoder.Params, shrinks: bool = True,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        """Compiles every program that any dialogues can need, so that no run compiles later.

        shrinks: whether the batch may be halved.
        progress: is told how many shapes are done, of how many.
        """
        params = self.prepare(params)
        sizes = [self.slots]
        while shrinks and (smaller := self.bucket_rows(sizes[-1] // 2)) < sizes[-1]:
            sizes.append(smaller)
        lengths = self._lengths
        shapes = [(n, s) for n in sizes for s in lengths]
        if self._model.audio:
            longest = longest_clip(self._config.max_episode_tokens)
            for samples in clip_sizes(self._model.audio, longest):
                self.encode_clip(params, np.zeros(samples, np.float32))
        # Several processes must run their programs in one order.
        with ThreadPoolExecutor(1 if hosts.several() else os.cpu_count()) as pool:
            progress(0, len(shapes))
            compiled = pool.map(
                lambda shape: self._compile_shape(params, shape, sizes[-1], lengths[-1]), shapes
            )
            for done, _ in enumerate(compiled, 1):  # raises what a thread raised
                progress(done, len(shapes))

    def _compile_shape(
        self,
        params: decoder.Params,
        shape: tuple[int, int],
        fewest: int,
        longest: int,
    ) -> None:
        """Runs every program once at one shape (rows, positions) of the state."""
        size, length = shape
        state, store = self.empty(size, length), self.empty_store(length)
        if length < longest:
            self.lengthen(state, store)
        if size > fewest:
            self.keep(state, list(range(size // 2)))
        for columns, share in self.chunks:
            part = self.places(size, share), columns
            state = self.extend(params, state, [], part)
            if self._model.audio:
                silent = chunks.with_sound(chunks.empty(part, size), {}, {}, self._model.d_model)
                state = self._extend(params, state, silent)
        if store is not None:
            store = self.park(state, store, [(0, 0)])
            state = self.unpark(state, store, [(0, 0)])
            state = self.share(state, [(0, 0)])
        self.decode(params, state, np.zeros(size, np.int32), 0, 1.0, EVERYTHING)

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
        state = jax.eval_shape(lambda: self._new_state(self.slots, length))
        state = place_shapes(state, EngineState(
            jax.tree.map(lambda _: cache, state.cache), rows, rows, rows, rows, rows
        ))

        def array(*shape: int, dtype: Any = jnp.int32) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(shape, dtype, sharding=rows if shape else None)

        columns, share = self.chunks[0]
        chunk = chunks.empty((self.places(self.slots, share), columns), self.slots)
        chunk = jax.tree.map(lambda x: array(*x.shape, dtype=x.dtype), chunk)
        with jax.set_mesh(self._mesh):  # attention asks it what it is made of
            return {
                "prefill": self._extend.lower(params, state, chunk),
                "decode": self._decode.lower(
                    params, self._grammar, state, array(self.slots), array(),
                    array(self.slots, dtype=jnp.float32),
                    Truncation(array(self.slots), *(
                        array(self.slots, dtype=jnp.float32) for _ in range(2)
                    )),
                ),
            }

    def prepare(self, params: decoder.Params) -> decoder.Params:
        """The stacked parameters of training as decoding takes them, on the engine's mesh."""
        params = self._unstack(params)
        axes = decoder.logical_axes(params)
        return hosts.put(params, tree_shardings(self._mesh, axes))

    def bucket_rows(self, wanted: int) -> int:
        """The smallest batch that holds `wanted` rows: the slots, halved as often as allowed."""
        size, floor = self.slots, max(self.slots // SHRINK_LIMIT, row_shards(self._mesh))
        while size // 2 >= max(wanted, floor) and (size // 2) % row_shards(self._mesh) == 0:
            size //= 2
        return size

    def places(self, batch: int, share: int) -> int:
        """Rows of a chunk that serves this share of the batch, as many in each shard."""
        return round_up(max(batch // share, 1), self._mesh)

    # ---- arrays -----------------------------------------------------------------------------

    def empty(self, rows: int, length: int = 0) -> EngineState:
        """length: 0: of the smallest cache."""
        return self._zeros(rows, length or self._lengths[0])

    def empty_store(self, length: int = 0) -> Cache | None:
        """Room for caches that are out of the batch; None where there is none."""
        return self._store(length or self._lengths[0]) if self._store_rows else None

    def _new_state(self, rows: int, length: int) -> EngineState:
        return EngineState(
            cache=empty_cache(self._model, rows, length),
            lengths=jnp.zeros(rows, jnp.int32),
            last=jnp.zeros(rows, jnp.int32),
            seeds=jnp.zeros(rows, jnp.uint32),
            dropped=jnp.zeros(rows, jnp.int32),
            syntax=jnp.zeros(rows, jnp.int32),
        )

    # ---- programs ---------------------------------------------------------------------------

    def extend(
        self,
        params: decoder.Params,
        state: EngineState,
        rows: Sequence[Row],
        shape: tuple[int, int],
    ) -> EngineState:
        """Feeds the rows' next pending tokens, as many as fit the chunk, and counts them as fed."""
        width = self._model.d_model
        chunk = chunks.chunk_of(rows, batch_of(state), self.shards, shape, width)
        return self._extend(params, state, chunk)

    def encode_clip(self, params: decoder.Params, clip: np.ndarray) -> np.ndarray:
        """What the decoder reads in place of a clip's tokens: float32 [tokens, D]."""
        parts = pieces_of(clip, self._model.audio).parts(PIECES)
        inputs = np.concatenate([jax.device_get(self._encode(params, part)) for part in parts])
        return inputs.reshape(-1, inputs.shape[-1])[: tokens_of(len(clip))]

    def decode(
        self,
        params: decoder.Params,
        state: EngineState,
        room: np.ndarray,
        patience: int,
        temperature: float | np.ndarray,
        truncation: Truncation,
    ) -> tuple[EngineState, Written]:
        """Samples; what was written is on the host.

        temperature, truncation: of all rows, or arrays [B] of each row's own.
        """

        def of_rows(value: Any, dtype: type) -> np.ndarray:
            return np.full(room.shape, value, dtype)

        cuts = Truncation(
            of_rows(truncation.top_k, np.int32), of_rows(truncation.top_p, np.float32),
            of_rows(truncation.min_p, np.float32),
        )
        state, out = self._decode(
            params, self._grammar, state, room, np.int32(patience),
            of_rows(temperature, np.float32), cuts,
        )
        return state, jax.device_get(out)

    def keep(self, state: EngineState, slots: list[int]) -> EngineState:
        """The state of these slots alone, half of them."""
        return self._resize(state, np.array(slots, np.int32), length_of(state))

    def lengthen(self, state: EngineState, store: Cache | None) -> tuple[EngineState, Cache | None]:
        """Both with room for more positions.

        Raises: ValueError where they have room for the longest episode.
        """
        limit = self._config.max_episode_tokens
        length = next((n for n in self._lengths if n > length_of(state)), None)
        if length is None:
            raise ValueError(
                f"a dialogue needs more than {length_of(state)} positions:"
                f" rollout.max_episode_tokens is {limit}"
            )
        state = self._resize(state, np.arange(batch_of(state), dtype=np.int32), length)
        return state, None if store is None else self._lengthen(store, length)

    def park(
        self, state: EngineState, store: Cache | None, pairs: Sequence[tuple[int, int]]
    ) -> Cache | None:
        """The store with caches of slots: (slot, place) pairs."""
        for part in _pairs(pairs):
            store = self._move(store, state.cache, part)
        return store

    def unpark(
        self, state: EngineState, store: Cache | None, pairs: Sequence[tuple[int, int]]
    ) -> EngineState:
        """The state with caches of the store: (place, slot) pairs."""
        cache = state.cache
        for part in _pairs(pairs):
            cache = self._move(cache, store, part)
        return dataclasses.replace(state, cache=cache)

    def share(self, state: EngineState, pairs: Sequence[tuple[int, int]]) -> EngineState:
        """The state with caches copied between slots: (from, to) pairs."""
        cache = state.cache
        for part in _pairs(pairs):
            cache = self._move_within(cache, part)
        return dataclasses.replace(state, cache=cache)


def _pairs(pairs: Sequence[tuple[int, int]]) -> list[np.ndarray]:
    """The pairs in arrays of one shape; fillers point beyond any target."""
    parts = [list(pairs[i : i + MOVES]) for i in range(0, len(pairs), MOVES)]
    return [np.array(p + [(0, _BEYOND)] * (MOVES - len(p)), np.int32) for p in parts]


def cache_lengths(most: int, least: int = 0) -> list[int]:
    """Positions of the caches that hold up to `most` tokens: half an octave apart from 512 on.

    Few, for each is compiled, and close, for decoding reads all of a cache for every token. Those
    that do not hold `least` tokens are left out.
    """
    lengths = [SHORTEST]
    while lengths[-1] < most:
        octave = 1 << (lengths[-1].bit_length() - 1)
        lengths.append(lengths[-1] + max(octave // 2, SHORTEST))
    lengths[-1] = -(-most // SHORTEST) * SHORTEST  # rounded up
    return [n for n in lengths[:-1] if n >= least] + lengths[-1:]


def length_of(state: EngineState) -> int:
    """Positions that the cache has room for."""
    return state.cache[0]["k"].shape[2]


def batch_of(state: EngineState) -> int:
    """Rows of the batch."""
    return state.lengths.shape[0]
