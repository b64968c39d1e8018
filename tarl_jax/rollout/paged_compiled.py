"""The engine's programs where the cache is in pages, compiled: one that feeds, one that writes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from tarl_jax.config import ConfigError, ModelConfig, RolloutConfig
from tarl_jax.models import decoder, pages
from tarl_jax.models.audio_inputs import clip_sizes, longest_clip, pieces_of, tokens_of
from tarl_jax.models.pages import Flat, Pool
from tarl_jax.parallel import hosts
from tarl_jax.parallel.compilations import compilations, named
from tarl_jax.parallel.mesh import (
    place_shapes,
    round_up,
    row_shards,
    sharding,
    tree_shardings,
)
from tarl_jax.rollout import paged_programs
from tarl_jax.rollout.compiled import PIECES
from tarl_jax.rollout.grammar import Grammar
from tarl_jax.rollout.paged_programs import Sound, Writers
from tarl_jax.rollout.programs import Written, encode_clip

BURST = 128  # tokens of a row that one call writes at most: after it, pages are given anew


class PagedPrograms:
    """The programs of one model on one mesh, and the pool that they work on.

    Attributes:
      slots: rows of the batch.
      shards: parts of the batch that stand on devices of their own.
      pages: of a shard's pool, page 0 included. size: tokens of a page. depth: pages of a row.
      budget: tokens that one step feeds in a shard.
      longest: tokens of a dialogue.
      burst: the most tokens of a row that one call of `decode` writes.

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
            self._kind = pages.layout(model)
        axes = pages.pool_axes(self._kind)
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
        self._encode = program(
            "encode", functools.partial(encode_clip, model), out_shardings=whole
        )
        self._cast = jax.jit(lambda leaves: [x.astype(model.dtype) for x in leaves])
        self._pool: Pool | None = None

    def _new_pool(self) -> Pool:
        return pages.empty_pool(self._model, self.shards * self.pages, self.size, self._kind)

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
        as it is.
        """
        leaves, tree = jax.tree.flatten(params)
        others = [i for i, x in enumerate(leaves) if x.dtype != self._model.dtype]
        if others:
            cast = self._cast([leaves[i] for i in others])
            for i, x in zip(others, cast, strict=True):
                leaves[i] = x
            params = jax.tree.unflatten(tree, leaves)
        return hosts.put(params, tree_shardings(self._mesh, decoder.logical_axes(params)))

    def bucket_rows(self, wanted: int) -> int:
        """All slots: an idle one costs a token's work and no cache."""
        return self.slots

    def compile(
        self, params: decoder.Params, shrinks: bool = True,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        """Compiles every program that any dialogues can need, so that no run compiles later.

        shrinks: of no matter; the batch has one size.
        progress: is told how many programs are done, of how many.
        """
        params = self.prepare(params)
        flat, writers, sound = self.nothing(self.budget)
        one, idle, _ = self.nothing(self.slots // self.shards)
        work: list[Callable[[], object]] = [
            lambda: self.mixed(params, flat, writers), lambda: self.decode(params, one, idle, 0)
        ]
        if self._model.audio:
            work.append(lambda: self.mixed(params, flat, writers, sound))
            for samples in clip_sizes(self._model.audio, longest_clip(self.longest)):
                silence = np.zeros(samples, np.float32)
                work.append(functools.partial(self.encode_clip, params, silence))
        progress(0, len(work))
        for done, one_more in enumerate(work, 1):
            one_more()
            progress(done, len(work))

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

    def lower(self, vocab_size: int) -> dict[str, Any]:
        """The programs, lowered but not compiled, for devices that may be elsewhere."""
        shapes = jax.eval_shape(lambda: decoder.cast(
            decoder.init_params(self._model, vocab_size, jax.random.key(0)), self._model.dtype
        ))
        params = place_shapes(shapes, tree_shardings(self._mesh, decoder.logical_axes(shapes)))
        pool = place_shapes(jax.eval_shape(self._new_pool), self._pool_shardings)
        rows = sharding(self._mesh, "rows")

        def of(tree: Any) -> Any:
            return jax.tree.map(
                lambda x: jax.ShapeDtypeStruct(
                    np.shape(x), x.dtype, sharding=rows if np.ndim(x) else None
                ), tree,
            )

        with jax.set_mesh(self._mesh):  # attention asks it what it is made of
            flat, writers, _ = self.nothing(self.budget)
            one, idle, _ = self.nothing(self.slots // self.shards)
            patience = jax.ShapeDtypeStruct((), jnp.int32)
            return {
                "feed": self._mixed.lower(
                    params, self._grammar, pool, of(flat), of(writers)
                ),
                "decode": self._decode.lower(
                    params, self._grammar, pool, of(one), of(idle), patience
                ),
            }

    # ---- programs ---------------------------------------------------------------------------

    def mixed(
        self, params: decoder.Params, flat: Flat, writers: Writers, sound: Sound | None = None
    ) -> Written:
        """Feeds; what was written is on the host."""
        with jax.set_mesh(self._mesh):
            self._pool, out = self._mixed(
                params, self._grammar, self._taken(), flat, writers, sound
            )
        return jax.device_get(out)

    def decode(
        self, params: decoder.Params, flat: Flat, writers: Writers, patience: int
    ) -> Written:
        """Writes; what was written is on the host."""
        with jax.set_mesh(self._mesh):
            self._pool, out = self._decode(
                params, self._grammar, self._taken(), flat, writers, np.int32(patience)
            )
        return jax.device_get(out)

    def _taken(self) -> Pool:
        """The pool, which the call that takes it gives back; made anew where one failed."""
        pool, self._pool = self._pool, None
        return self._empty() if pool is None else pool

    def encode_clip(self, params: decoder.Params, clip: np.ndarray) -> np.ndarray:
        """What the decoder reads in place of a clip's tokens: float32 [tokens, D]."""
        parts = pieces_of(clip, self._model.audio).parts(PIECES)
        inputs = np.concatenate([jax.device_get(self._encode(params, part)) for part in parts])
        return inputs.reshape(-1, inputs.shape[-1])[: tokens_of(len(clip))]


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
