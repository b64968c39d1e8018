"""The engine's programs, compiled: every shape that a run can need comes from short lists.

Rows are the slots, halved a few times. A cache has room for the longest dialogue (a long one begins
shorter and grows), and programs read the parts of it that the rows have come to. All are compiled
before the first tick, and none after.
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
from tarl_jax.config.rollout import int8_cache, int8_weights
from tarl_jax.models import decoder
from tarl_jax.models.cache import Cache, cache_rooms, empty_cache, lengthened
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
from tarl_jax.rollout.hearing import Hearing
from tarl_jax.rollout.prepared import Prepared
from tarl_jax.rollout.programs import EngineState, Written, batch_of, length_of
from tarl_jax.rollout.sampling import EVERYTHING, Truncation
from tarl_jax.rollout.scheduler import Row

# Programs that feed forced tokens: (columns, share of the batch's rows that they serve at a time).
CHUNKS = ((44, 8), (12, 4))
LONG_CHUNK = (256, 64)  # for prompts of thousands of tokens
LONG = 2048  # tokens of an episode from which on it is used
SHRINK_LIMIT = 4  # the batch is not halved below slots / SHRINK_LIMIT
MOVES = 4  # caches that are moved at a time
_BEYOND = 2**31 - 1  # a row that no cache has
PREFIXES = 2  # shared prefixes that are kept, one per kind of task

Pairs = Sequence[tuple[int, int]]


class Compiled:
    """The programs of one model on one mesh, and the arrays that they work on.

    Attributes:
      slots: rows of the largest batch.
      shards: parts of the batch that stand on devices of their own.
      chunks: (columns, share of the rows) of the programs that feed tokens, the widest first.
      stop_ids: what ends a turn.
      burst: the most tokens of a row that one call of `decode` samples.
      prepare: the stacked parameters of training as decoding takes them.
      hear: clips as decoding takes them.

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
        self._rooms = cache_rooms(config.max_episode_tokens, least)
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
        self._cache_sharding = cache
        self.shards = row_shards(mesh)
        extend = functools.partial(programs.extend, model)
        if self.shards > 1:
            # Each shard feeds rows of its own: a cache that is taken from another costs its length.
            extend = jax.shard_map(
                extend, mesh=mesh,
                in_specs=(PartitionSpec(), spec("rows"), spec("rows")),
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
        self._move = program(
            "move", programs.move, donate_argnums=(0, 1), out_shardings=(cache, cache)
        )
        self.hear = Hearing(model, config.max_episode_tokens, mesh)
        self.prepare = Prepared(model, mesh, int8_weights(config))

    @property
    def shortest(self) -> int:
        """Positions of the smallest cache."""
        return self._rooms[0]

    @property
    def longest(self) -> int:
        """Positions of the largest cache."""
        return self._rooms[-1]

    def cache_bytes(self) -> tuple[int, int]:
        """Bytes of one device: of all caches at their largest, and of half a batch beside them."""
        state = self._state(self.slots, self.longest).cache
        held, smaller = bytes_on_device(state), self.bucket_rows(self.slots // 2) < self.slots
        held_too = bytes_on_device(self._store(self.longest))
        return held + held_too, held // 2 if smaller else 0

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
        self, params: decoder.Params, sizes: Sequence[int], length: int = 0
    ) -> list[Wanted]:
        """What has to be compiled for batches of these sizes.

        Args:
          params: shapes of the prepared parameters.
          length: positions of the only cache, or more; 0: every cache.
        """
        found = self.hear.wanted(params)
        rooms = [room for room in self._rooms if room >= length]
        for room in rooms[:1] if length else rooms:
            for size in sizes:
                found += self._wanted_at(params, size, room)
                if size > sizes[-1]:
                    half = np.arange(size // 2, dtype=np.int32)
                    found.append(Wanted("keep", False, self._keep, (self._state(size, room), half)))
        return list({one.key: one for one in found}.values())

    def _wanted_at(
        self, params: decoder.Params, size: int, room: int
    ) -> list[Wanted]:
        """The programs at one shape (rows, positions) of the state."""
        state, store = self._state(size, room), self._store(room)
        at = f"{size} x {room}"
        found = []
        for columns, share in self.chunks:
            part = self.places(size, share), columns
            fed, name = chunks.empty(part, size), f"{at}, {part[0]} x {columns} tokens"
            arguments = params, state, fed
            found.append(Wanted("prefill", True, self._extend, arguments, name))
            if self._model.audio:
                fed = chunks.with_sound(fed, {}, {}, self._model.d_model)
                arguments, name = (params, state, fed), f"{name} with sound"
                found.append(Wanted("prefill", True, self._extend, arguments, name))
        if store is not None:
            moved = state.cache, store, *_pairs([(0, 0)])[0]
            found.append(Wanted("move", False, self._move, moved, at))
        drawn = self._drawn(np.zeros(size, np.int32), 0, 1.0, EVERYTHING)
        drawing = params, self._grammar, state, *drawn
        found.append(Wanted("decode", True, self._decode, drawing, at))
        return found

    def _state(self, size: int, room: int) -> EngineState:
        """Shapes of a batch, which say where it lives."""
        by = by_rows(self._mesh)
        of = functools.partial(jax.ShapeDtypeStruct, (size,), sharding=by)
        ints = of(jnp.int32)
        return EngineState(
            cache=self._cache(size, room),
            lengths=ints, last=ints, seeds=of(jnp.uint32), dropped=ints, syntax=ints,
        )

    def _store(self, room: int) -> Cache | None:
        """Shapes of the store, which say where it lives; None where there is none."""
        if not self._store_rows:
            return None
        return self._cache(self._store_rows, room)

    def _cache(self, rows: int, room: int) -> Cache:
        """Shapes of one, which say where it lives."""
        int8 = int8_cache(self._config)
        held = jax.eval_shape(lambda: empty_cache(self._model, rows, room, int8))
        return place_shapes(held, jax.tree.map(lambda _: self._cache_sharding, held))

    def model_sized(self, params: decoder.Params, length: int) -> dict[str, Wanted]:
        """The model's programs at full batch and a cache of `length`, of each kind the largest.

        Needs no arrays and none of the devices: a mesh of devices that are elsewhere will do.

        params: shapes of training's.
        """
        with jax.set_mesh(self._mesh):  # attention asks it what it is made of
            held = min(length, self.longest)
            found = self.wanted(self.prepare.shapes(params), [self.slots], held)
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

    def empty(self, rows: int) -> EngineState:
        """Of the smallest cache."""
        return hosts.zeros(self._state(rows, self.shortest))

    def empty_store(self) -> Cache | None:
        """Room for caches that are out of the batch; None where there is none."""
        return hosts.zeros(self._store(self.shortest))

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
        """Both with room for more positions; nothing is copied.

        Raises: ValueError where they have room for the longest episode.
        """
        limit = self._config.max_episode_tokens
        longer = next((n for n in self._rooms if n > length_of(state)), None)
        if longer is None:
            raise ValueError(
                f"a dialogue needs more than {length_of(state)} positions:"
                f" rollout.max_episode_tokens is {limit}"
            )
        cache = self._grown(state.cache, self._cache(batch_of(state), longer))
        state = dataclasses.replace(state, cache=cache)
        return state, None if store is None else self._grown(store, self._store(longer))

    @staticmethod
    def _grown(cache: Cache, longer: Cache | None) -> Cache:
        """longer: its shapes."""
        assert longer is not None
        have = len(cache[0]["k"])
        more = tuple({name: parts[have:] for name, parts in layer.items()} for layer in longer)
        return lengthened(cache, hosts.zeros(more))

    def move(
        self, state: EngineState, store: Cache | None, within: Pairs = (), out: Pairs = (),
        into: Pairs = (),
    ) -> tuple[EngineState, Cache | None]:
        """Both, with caches copied into the store, within the slots and out of it.

        within: (slot, slot) pairs. out: (place, slot); of places that nothing is copied into. into:
          (slot, place), as the slots were before. Without a store there are none of them.
        """
        cache = state.cache
        together = max(len(within), len(out), len(into)) <= MOVES
        for part in _pairs(within, out, into) if together else (
            _pairs(into=into) + _pairs(within, out)
        ):
            cache, store = self._move(cache, store, *part)
        return dataclasses.replace(state, cache=cache), store


def _pairs(within: Pairs = (), out: Pairs = (), into: Pairs = ()) -> list[list[np.ndarray]]:
    """For each call of `programs.move` its pairs, of one shape; fillers point beyond any target."""

    def arrays(pairs: Pairs, begin: int) -> np.ndarray:
        some = list(pairs[begin : begin + MOVES])
        return np.array(some + [(0, _BEYOND)] * (MOVES - len(some)), np.int32)

    most = max(len(within), len(out), len(into))
    return [[arrays(of, begin) for of in (within, out, into)] for begin in range(0, most, MOVES)]
