"""The engine's programs, compiled: every shape that a run can need comes from short lists.

Shapes are (rows, positions of the cache): rows are the slots, halved a few times; positions grow in
buckets. All are compiled before the first tick, and none after.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from tarl_jax.config import ModelConfig, RolloutConfig
from tarl_jax.models import decoder
from tarl_jax.models.audio_inputs import clip_sizes, longest_clip, pieces_of, tokens_of
from tarl_jax.models.cache import Cache, cache_lengths, empty_cache, lengthened
from tarl_jax.parallel import hosts
from tarl_jax.parallel.compilations import Progress, Wanted, compilations, compile_all, named
from tarl_jax.parallel.mesh import (
    ROW_AXES,
    by_rows,
    bytes_on_device,
    place_shapes,
    round_up,
    row_shards,
    sharding,
    spec,
)  # fmt: skip
from tarl_jax.rollout import chunks, programs
from tarl_jax.rollout.grammar import Grammar
from tarl_jax.rollout.prepared import Prepared
from tarl_jax.rollout.programs import EngineState, Written, batch_of, length_of
from tarl_jax.rollout.sampling import EVERYTHING, Truncation
from tarl_jax.rollout.scheduler import Row

# Programs that feed forced tokens: (columns, share of the batch's rows that they serve at a time).
CHUNKS = ((44, 8), (12, 4))
LONG_CHUNK = (256, 64)  # for prompts of thousands of tokens
LONG = 2048  # tokens of an episode from which on it is used
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
      prepare: the stacked parameters of training as decoding takes them.

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
        self.burst = burst or config.max_turn_tokens

        def program(name: str, function: Callable[..., Any], **options: Any) -> Any:
            return jax.jit(named(f"engine_{name}", function), **options)

        self._extend = program("extend", extend, donate_argnums=1, out_shardings=rows)
        self._decode = program(
            "decode",
            functools.partial(programs.decode, model, self.stop_ids, ids, self.burst),
            donate_argnums=2, out_shardings=(rows, whole),
        )
        self._keep = program("keep", programs.keep, out_shardings=rows)
        self._move = program("move", programs.move, donate_argnums=0, out_shardings=cache)
        self._move_within = program(
            "move_within", programs.move_within, donate_argnums=0, out_shardings=cache
        )
        self._grow = program("grow", lengthened, static_argnums=1, out_shardings=cache)
        self._zeros = program("zeros", self._new_state, static_argnums=(0, 1), out_shardings=rows)
        self._store = program("store", self._store_of, static_argnums=0, out_shardings=cache)
        encode = functools.partial(programs.encode_clip, model)
        self._encode = program("encode", encode, out_shardings=whole)
        self.prepare = Prepared(model, mesh)

    @property
    def shortest(self) -> int:
        """Positions of the smallest cache."""
        return self._lengths[0]

    @property
    def longest(self) -> int:
        """Positions of the largest cache."""
        return self._lengths[-1]

    def cache_bytes(self) -> tuple[int, int]:
        """Bytes of one device: of all caches at their largest, and what moving them takes beside
        that for a moment: half a batch, or a layer that grows."""
        state = self._placed(self._shapes(self.slots, self.longest)).cache
        store = self._placed(jax.eval_shape(lambda: self._store_of(self.longest)))
        held, smaller = bytes_on_device(state), self.bucket_rows(self.slots // 2) < self.slots
        return held + bytes_on_device(store), held // 2 if smaller else bytes_on_device(state[0])

    @property
    def compilations(self) -> int:
        """Programs of engines that this process has compiled so far."""
        return compilations("engine_")

    def use_grammar(self, grammar: Grammar) -> None:
        """What rows follow from now on; of other shapes than before it costs a compilation."""
        self._grammar = hosts.put(grammar, sharding(self._mesh))

    def compile(
        self, params: decoder.Params, shrinks: bool = True,
        progress: Progress = lambda done, total, note="": None,
    ) -> None:
        """Compiles every program that any dialogues can need, so that no run compiles later.

        Holds none of the arrays that they work on.

        Args:
          shrinks: whether the batch may be halved.
        """
        wanted = self.wanted(self.prepare.shapes(params), self.sizes(shrinks))
        compile_all(self.prepare.wanted(params) + wanted, progress)

    def sizes(self, shrinks: bool = True) -> list[int]:
        """Rows of every batch."""
        sizes = [self.slots]
        while shrinks and (smaller := self.bucket_rows(sizes[-1] // 2)) < sizes[-1]:
            sizes.append(smaller)
        return sizes

    def wanted(
        self, params: decoder.Params, sizes: Sequence[int], lengths: Sequence[int] = ()
    ) -> list[Wanted]:
        """What has to be compiled for batches of these sizes and caches of these lengths.

        Args:
          params: shapes of the prepared parameters.
          lengths: empty: all that there can be.
        """
        found = []
        if self._model.audio:
            longest = longest_clip(self._config.max_episode_tokens)
            for samples in clip_sizes(self._model.audio, longest):
                silence = np.zeros(samples, np.float32)
                for part in pieces_of(silence, self._model.audio).parts(PIECES):
                    found.append(Wanted("encode", True, self._encode, (params, part)))
        for length in lengths or self._lengths:
            longer = next((n for n in self._lengths if n > length), None)
            store = self._placed(jax.eval_shape(lambda n=length: self._store_of(n)))
            if store is not None:
                found.append(Wanted("store", False, self._store, (length,)))
                if longer:
                    found.append(Wanted("grow", False, self._grow, (store[0], longer)))
            for size in sizes:
                found += self._wanted_at(params, store, size, length, longer)
                if size > sizes[-1]:
                    half = np.arange(size // 2, dtype=np.int32)
                    state = self._placed(self._shapes(size, length))
                    found.append(Wanted("keep", False, self._keep, (state, half)))
        return list({one.key: one for one in found}.values())

    def _wanted_at(
        self, params: decoder.Params, store: Cache | None, size: int, length: int,
        longer: int | None,
    ) -> list[Wanted]:
        """The programs at one shape (rows, positions) of the state."""
        state = self._placed(self._shapes(size, length))
        at = f"{size} x {length}"
        found = [Wanted("zeros", False, self._zeros, (size, length), at)]
        if longer:
            found.append(Wanted("grow", False, self._grow, (state.cache[0], longer), at))
        for columns, share in self.chunks:
            part = self.places(size, share), columns
            fed, name = chunks.empty(part, size), f"{at}, {part[0]} x {columns} tokens"
            found.append(Wanted("prefill", True, self._extend, (params, state, fed), name))
            if self._model.audio:
                fed = chunks.with_sound(fed, {}, {}, self._model.d_model)
                name = f"{name} with sound"
                found.append(Wanted("prefill", True, self._extend, (params, state, fed), name))
        if store is not None:
            (pairs,) = _pairs([(0, 0)])
            found.append(Wanted("move", False, self._move, (store, state.cache, pairs), at))
            found.append(Wanted("unpark", False, self._move, (state.cache, store, pairs), at))
            found.append(Wanted("share", False, self._move_within, (state.cache, pairs), at))
        drawn = self._drawn(np.zeros(size, np.int32), 0, 1.0, EVERYTHING)
        arguments = params, self._grammar, state, *drawn
        return [*found, Wanted("decode", True, self._decode, arguments, at)]

    def _shapes(self, size: int, length: int) -> Any:
        return jax.eval_shape(lambda: self._new_state(size, length))

    def _placed(self, shapes: Any) -> Any:
        """A state or a cache as shapes that say where it lives."""
        rows, cache = by_rows(self._mesh), self._state_shardings.cache
        if not isinstance(shapes, EngineState):
            return place_shapes(shapes, jax.tree.map(lambda _: cache, shapes))
        caches = jax.tree.map(lambda _: cache, shapes.cache)
        return place_shapes(shapes, EngineState(caches, rows, rows, rows, rows, rows))

    def model_sized(self, params: decoder.Params, length: int) -> dict[str, Wanted]:
        """The model's programs at full batch and a cache of `length`, of each kind the largest.

        Needs no arrays and none of the devices: a mesh of devices that are elsewhere will do.

        params: shapes of training's.
        """
        with jax.set_mesh(self._mesh):  # attention asks it what it is made of
            found = self.wanted(self.prepare.shapes(params), [self.slots], [length])
        return {
            one.name: dataclasses.replace(one, mesh=self._mesh)
            for one in reversed(found) if one.model_sized
        }

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

    def _store_of(self, length: int) -> Cache | None:
        return empty_cache(self._model, self._store_rows, length) if self._store_rows else None

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

        drawn = self._drawn(room, patience, temperature, truncation)
        state, out = self._decode(params, self._grammar, state, *drawn)
        return state, jax.device_get(out)

    @staticmethod
    def _drawn(
        room: np.ndarray, patience: int, temperature: float | np.ndarray, truncation: Truncation
    ) -> tuple[Any, ...]:
        """How the rows of a call of decode are drawn, as its arguments."""

        def of_rows(value: Any, dtype: type) -> np.ndarray:
            return np.full(room.shape, value, dtype)

        cuts = Truncation(
            of_rows(truncation.top_k, np.int32), of_rows(truncation.top_p, np.float32),
            of_rows(truncation.min_p, np.float32),
        )
        return room, np.int32(patience), of_rows(temperature, np.float32), cuts

    def keep(self, state: EngineState, slots: list[int]) -> EngineState:
        """The state of these slots alone, half of them."""
        return self._keep(state, np.array(slots, np.int32))

    def lengthen(self, state: EngineState, store: Cache | None) -> tuple[EngineState, Cache | None]:
        """Both with room for more positions; layer by layer, and the old ones are given up.

        Raises: ValueError where they have room for the longest episode.
        """
        limit = self._config.max_episode_tokens
        length = next((n for n in self._lengths if n > length_of(state)), None)
        if length is None:
            raise ValueError(
                f"a dialogue needs more than {length_of(state)} positions:"
                f" rollout.max_episode_tokens is {limit}"
            )
        longer = dataclasses.replace(state, cache=self._grown(state.cache, length))
        return longer, None if store is None else self._grown(store, length)

    def _grown(self, cache: Cache, length: int) -> Cache:
        grown = []
        for layer in cache:
            grown.append(jax.block_until_ready(self._grow(layer, length)))
            for old in layer.values():
                old.delete()
        return tuple(grown)

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
