"""The key/value cache of a set of rows: per layer {"k", "v"}, each [B, K, S, H].

Kept per layer and not stacked: a stacked cache is copied by every scan over the layers. Heads
before positions, so that one head's keys lie together and a decode step reads them in order.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from tarl_jax.config import ModelConfig

Cache = tuple[dict[str, jax.Array], ...]
SHORTEST = 256  # positions that a program reads at least
_GRAIN = 128  # the longest is rounded up to a multiple of it
_GROWN = 4096  # positions; a cache of more begins at a quarter, and grows


def empty_cache(config: ModelConfig, rows: int, length: int) -> Cache:
    """A cache of zeros for `rows` rows of up to `length` tokens."""
    shape = (rows, config.num_kv_heads, length, config.head_dim)
    return tuple(
        {"k": jnp.zeros(shape, config.dtype), "v": jnp.zeros(shape, config.dtype)}
        for _ in range(config.num_layers)
    )


def lengthened(layer: dict[str, jax.Array], length: int) -> dict[str, jax.Array]:
    """One layer with room for `length` tokens, at least as many as before."""
    return {
        name: jnp.pad(x, ((0, 0), (0, 0), (0, length - x.shape[2]), (0, 0)))
        for name, x in layer.items()
    }


def rows_of(cache: Cache, rows: Int[Array, " B"]) -> Cache:
    """The given rows of a cache."""
    return jax.tree.map(lambda x: x[rows], cache)


def cache_lengths(most: int, least: int = 0) -> list[int]:
    """Positions that programs read of caches that hold up to `most` tokens: half an octave apart
    from 512 on.

    Few, for decoding is compiled for each, and close, for it reads all of them for every token.
    Those that do not hold `least` tokens are left out.
    """
    lengths = [SHORTEST]
    while lengths[-1] < most:
        octave = 1 << (lengths[-1].bit_length() - 1)
        lengths.append(lengths[-1] + max(octave // 2, SHORTEST))
    lengths[-1] = -(-most // _GRAIN) * _GRAIN
    return [n for n in lengths[:-1] if n >= least] + lengths[-1:]


def cache_rooms(lengths: Sequence[int]) -> dict[int, tuple[int, ...]]:
    """Positions of the caches themselves, each with the lengths that are read of it.

    One as long as the longest, and before a long one some of a quarter of the next.
    """
    rooms = [lengths[-1]]
    while rooms[0] > _GROWN and (short := [n for n in lengths if n <= rooms[0] // 4]):
        rooms.insert(0, short[-1])
    return {
        room: tuple(n for n in lengths if before < n <= room)
        for before, room in zip([0, *rooms], rooms, strict=False)
    }
