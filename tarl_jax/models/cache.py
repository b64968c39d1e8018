"""The key/value cache of a set of rows: per layer {"k", "v"}, each [B, K, S, H].

Kept per layer and not stacked: a stacked cache is copied by every scan over the layers. Heads
before positions, so that one head's keys lie together and a decode step reads them in order.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from tarl_jax.config import ModelConfig

Cache = tuple[dict[str, jax.Array], ...]


def empty_cache(config: ModelConfig, rows: int, length: int) -> Cache:
    """A cache of zeros for `rows` rows of up to `length` tokens."""
    shape = (rows, config.num_kv_heads, length, config.head_dim)
    return tuple(
        {"k": jnp.zeros(shape, config.dtype), "v": jnp.zeros(shape, config.dtype)}
        for _ in range(config.num_layers)
    )


def resize(cache: Cache, rows: Int[Array, " B"], length: int) -> Cache:
    """The given rows of a cache, with room for `length` tokens (at least as many as before)."""

    def take(x: jax.Array) -> jax.Array:
        return jnp.pad(x[rows], ((0, 0), (0, 0), (0, length - x.shape[2]), (0, 0)))

    return jax.tree.map(take, cache)
