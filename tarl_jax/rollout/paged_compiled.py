"""The engine's programs where the cache is in pages, compiled: one that feeds, one that writes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from tarl_jax.config import ConfigError, ModelConfig, RolloutConfig
from tarl_jax.config.rollout import int8_cache, int8_weights
from tarl_jax.models import decoder, pages
from tarl_jax.models.pages import Flat, Pool
from tarl_jax.models.quantised import quantised
from tarl_jax.parallel import hosts
from tarl_jax.parallel.compilations import (
    Progress,
    Wanted,
    abstract,
    compilations,
    compile_all,
    named,
)
from tarl_jax.parallel.mesh import (
    bytes_on_device,
    place_shapes,
    round_up,
    row_shards,
    sharding,
    tree_shardings,
)
from tarl_jax.rollout import paged_programs
from tarl_jax.rollout.grammar import Grammar
from tarl_jax.rollout.hearing import Hearing
from tarl_jax.rollout.paged_programs import Sound, Writers
from tarl_jax.rollout.programs import Written

BURST = 128  # tokens of a row that one call writes at most: after it, pages are given anew


class PagedPrograms:
    """The programs of one model on one mesh.

    Attributes:
      slots: rows of the batch.
      shards: parts of the batch that stand on devices of their own.
      pages: of a shard's pool, page 0 included. size: tokens of a page. depth: pages of a row.
      budget: tokens that one step feeds in a shard.
      longest: tokens of a dialogue.
      burst: the most tokens of a row that one call of `decode` writes.
      hear: clips as decoding takes them.

    Raises ConfigError where a shard's pool cannot hold the longest dialogue.
    """

    def __init__(
        self,
        model: ModelConfig,
        config: RolloutConfig,
        stop_id: int | tuple[int, ...],
        mesh: Mesh,
        grammar: Grammar | None = None,
        burst: int = 0,
        ids: int = 0,
    ):
        self._model, self._mesh = model, mesh
        self.stop_ids = (stop_id,) if isinstance(stop_id, int) else stop_id
        self.slots, self.shards = round_up(config.slots, mesh), row_shards(mesh)
        self.size, self.depth = config.page, _depth(config)
        self.pages = pool_pages(config, self.slots, self.shards)
        # A step has room for every row that writes, and feeds something beside them.
        own = self.slots // self.shards
        self.budget = max(config.feed_tokens, own + config.page)
        self.burst = min(burst or BURST, config.max_turn_tokens)
        self.longest = config.max_episode_tokens
        self._grammar = None if grammar is None else hosts.put(grammar, sharding(mesh))
        with jax.set_mesh(mesh):
            self._kind = pages.layout(model, int8_cache(config))
        axes = pages.pool_axes(jax.eval_shape(self._new_pool))
        self._pool_shardings = {name: sharding(mesh, *of) for name, of in axes.items()}
        whole = sharding(mesh)
        outputs = (self._pool_shardings, whole)

        def program(name: str, function: Callable[..., Any], **options: Any) -> Any:
            return jax.jit(named(f"engine_{name}", function), **options)

        self._mixed = program(
            "mixed", functools.partial(paged_programs.mixed, model, ids),
            donate_argnums=2, out_shardings=outputs,
        )
        self._decode = program(
            "decode",
            functools.partial(
                paged_programs.decode, model, self.stop_ids, ids, self.burst, self.size
            ),
            donate_argnums=2, out_shardings=outputs,
        )
        self._empty = program("empty", self._new_pool, out_shardings=self._pool_shardings)
        self.hear = Hearing(model, config.max_episode_tokens, mesh)
        self._casts: dict[Any, Any] = {}  # by which leaves they are of, and where these go
        self._quantise = program(
            "quantise", lambda params: quantised(params, model.dtype)
        ) if int8_weights(config) else None

    def empty(self) -> Pool:
        """A pool with nothing in it."""
        return cast(Pool, self._empty())

    def _new_pool(self) -> Pool:
        return pages.empty_pool(self._model, self.shards * self.pages, self.size, self._kind)

    def cache_bytes(self) -> tuple[int, int]:
        """Bytes of the pool on one device; nothing of it ever moves."""
        pool = place_shapes(jax.eval_shape(self._new_pool), self._pool_shardings)
        return bytes_on_device(pool), 0

    @property
    def compilations(self) -> int:
        """Programs of engines that this process has compiled so far."""
        return compilations("engine_")

    def use_grammar(self, grammar: Grammar) -> None:
        """What rows follow from now on; of other shapes than before it costs a compilation."""
        self._grammar = hosts.put(grammar, sharding(self._mesh))

    def prepare(self, params: decoder.Params) -> decoder.Params:
        """The stacked parameters of training as decoding takes them, on the engine's mesh.

        What has the model's dtype and lies there already, such as weights under adapters, is taken
        as it is; what has another one is cast on its way there, without a copy in between, or,
        where these are other devices than training's, before it goes there.
        """
        if self._quantise:
            made = self._quantise(params)
            return hosts.put(made, tree_shardings(self._mesh, decoder.logical_axes(made)))
        leaves, tree = jax.tree.flatten(params)
        places = self._places(params)
        own, program = self._cast(leaves, places)
        if own:
            for i, x in zip(own, program([leaves[i] for i in own]), strict=True):
                leaves[i] = x
        return hosts.put(jax.tree.unflatten(tree, leaves), jax.tree.unflatten(tree, places))

    def shapes(self, params: decoder.Params) -> decoder.Params:
        """What `prepare` makes of arrays or shapes, as shapes that say where they live."""
        if self._quantise:
            made = jax.eval_shape(self._quantise, params)
            return place_shapes(made, tree_shardings(self._mesh, decoder.logical_axes(made)))
        leaves, tree = jax.tree.flatten(params)
        dtype = jnp.dtype(self._model.dtype)
        return jax.tree.unflatten(tree, [
            jax.ShapeDtypeStruct(x.shape, dtype, sharding=where)
            for x, where in zip(leaves, self._places(params), strict=True)
        ])

    def _places(self, params: decoder.Params) -> list[NamedSharding]:
        """Where decoding has the leaves."""
        return jax.tree.leaves(tree_shardings(self._mesh, decoder.logical_axes(params)))

    def _cast(self, leaves: Sequence[Any], places: Sequence[NamedSharding]) -> tuple[Any, Any]:
        """(which leaves are of another dtype, the program that casts them on their way)."""
        own = tuple(i for i, x in enumerate(leaves) if x.dtype != self._model.dtype)
        where = tuple(_on_the_way(leaves[i], places[i]) for i in own)
        if own and (own, where) not in self._casts:
            def prepare(leaves: list[jax.Array]) -> list[jax.Array]:
                return [x.astype(self._model.dtype) for x in leaves]

            self._casts[own, where] = jax.jit(
                named("engine_prepare", prepare), out_shardings=list(where)
            )
        return own, self._casts.get((own, where))

    def bucket_rows(self, wanted: int) -> int:
        """All slots: an idle one costs a token's work and no cache."""
        return self.slots

    def compile(
        self, params: decoder.Params, shrinks: bool = True,
        progress: Progress = lambda done, total, note="": None,
    ) -> None:
        """Compiles every program that any dialogues can need, so that no run compiles later.

        Nothing runs, and no array is made.

        shrinks: of no matter; the batch has one size.
        """
        compile_all(self.wanted(params), progress)

    def model_sized(self, params: decoder.Params) -> dict[str, Wanted]:
        """The programs that run the model, for devices that may be elsewhere; see `wanted`."""
        return {one.name: one for one in self.wanted(params) if one.model_sized}

    def wanted(self, params: decoder.Params) -> list[Wanted]:
        """What has to be compiled; params: training's, arrays or shapes that say where they live.
        """
        found: list[Wanted] = []
        if self._quantise:
            found.append(Wanted("prepare", False, self._quantise, (abstract(params),)))
        else:
            leaves, places = jax.tree.leaves(abstract(params)), self._places(params)
            own, program = self._cast(leaves, places)
            if own:
                found.append(Wanted("prepare", False, program, ([leaves[i] for i in own],)))
        pool = place_shapes(jax.eval_shape(self._new_pool), self._pool_shardings)
        begin = self.shapes(params), self._grammar, pool
        flat, writers, sound = self.nothing(self.budget)
        one, idle, _ = self.nothing(self.slots // self.shards)

        def add(name: str, at: str, function: Any, *args: Any) -> None:
            found.append(Wanted(name, True, function, args, at, self._mesh))

        found.append(Wanted("empty", False, self._empty, ()))
        fed = f"{self.shards} x {self.budget} tokens"
        add("feed", fed, self._mixed, *begin, flat, writers, None)
        add("decode", f"{self.slots} rows", self._decode, *begin, one, idle, np.int32(0))
        if self._model.audio:
            add("feed with sound", fed, self._mixed, *begin, flat, writers, sound)
            found += self.hear.wanted(begin[0])
        return list({one.key: one for one in found}.values())

    def nothing(self, tokens: int) -> tuple[Flat, Writers, Sound]:
        """A call's arrays, on the host, with nothing in them; `tokens` of each shard."""
        rows, shards = self.slots, self.shards
        count = tokens * shards
        flat = Flat(
            tokens=np.zeros(count, np.int32), positions=np.zeros(count, np.int32),
            pages=np.zeros(count, np.int32), tables=np.zeros((rows, self.depth), np.int32),
            lengths=np.ones(rows, np.int32), begins=np.zeros(rows + shards, np.int32),
            count=np.zeros(shards, np.int32),
        )
        writers = Writers(
            seeds=np.zeros(rows, np.uint32), dropped=np.zeros(rows, np.int32),
            syntax=np.zeros(rows, np.int32), room=np.zeros(rows, np.int32),
            temperature=np.ones(rows, np.float32), top_k=np.zeros(rows, np.int32),
            top_p=np.ones(rows, np.float32), min_p=np.zeros(rows, np.float32),
        )
        width = self._model.d_model if self._model.audio else 0
        return flat, writers, Sound(np.zeros(count, bool), np.zeros((count, width), np.float32))

    # ---- programs ---------------------------------------------------------------------------

    def mixed(
        self, params: decoder.Params, pool: Pool, flat: Flat, writers: Writers,
        sound: Sound | None = None,
    ) -> tuple[Pool, Written]:
        """Feeds; takes the pool and gives it back. What was written is on the host."""
        with jax.set_mesh(self._mesh):
            pool, out = self._mixed(params, self._grammar, pool, flat, writers, sound)
        return pool, jax.device_get(out)

    def decode(
        self, params: decoder.Params, pool: Pool, flat: Flat, writers: Writers, patience: int
    ) -> tuple[Pool, Written]:
        """Writes; as `mixed`."""
        with jax.set_mesh(self._mesh):
            pool, out = self._decode(
                params, self._grammar, pool, flat, writers, np.int32(patience)
            )
        return pool, jax.device_get(out)


def _on_the_way(leaf: Any, place: NamedSharding) -> Any:
    """Where a program that runs where the leaf lies may leave what goes to `place`."""
    lies = getattr(leaf, "sharding", None)
    elsewhere = lies is not None and not lies.device_set & place.device_set
    return lies if elsewhere else place


def in_pages(config: RolloutConfig, mesh: Mesh) -> bool:
    """Whether a run's caches are in pages."""
    if config.cache == "auto":
        return bool(mesh.devices.flat[0].platform != "cpu")
    return config.cache == "pages"


def pool_pages(config: RolloutConfig, slots: int, shards: int) -> int:
    """Pages of a shard's pool. Raises ConfigError where the longest dialogue does not fit in."""
    longest = -(-config.max_episode_tokens // config.page)
    # What dialogues hold on average is well under half of what the longest one may.
    tokens = config.cache_tokens or max(slots // 2, shards) * config.max_episode_tokens
    held = tokens // shards // config.page
    if held < longest:
        least = longest * config.page * shards
        raise ConfigError(
            f"config.rollout.cache_tokens = {config.cache_tokens}: a dialogue of"
            f" rollout.max_episode_tokens = {config.max_episode_tokens} does not fit into one of"
            f" {shards} shards; give {least} or more, or 0"
        )
    return held + 1


def _depth(config: RolloutConfig) -> int:
    """Pages that a row's table names: what the longest dialogue fills, rounded for the kernels."""
    pages = -(-config.max_episode_tokens // config.page)
    return pages if pages <= 8 else -(-pages // 8) * 8
