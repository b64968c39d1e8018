"""The key/value cache of a set of rows: per layer {"k", "v"}, each [B, K, S, H].

In int8 it has "k_scale" and "v_scale" beside them, float32 [B, K, S].

Kept per layer and not stacked: a stacked cache is copied by every scan over the layers. Heads
before positions, so that one head's keys lie together and a decode step reads them in order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from tarl_jax.config import ModelConfig
from tarl_jax.models.quantised import rounded, widened

Cache = tuple[dict[str, jax.Array], ...]
SHORTEST = 256  # positions that a program reads at least
_GRAIN = 128  # the longest is rounded up to a multiple of it
_GROWN = 4096  # positions; a cache of more begins at a quarter, and grows


def empty_cache(config: ModelConfig, rows: int, length: int, int8: bool = False) -> Cache:
    """A cache of zeros for `rows` rows of up to `length` tokens."""
    shape = (rows, config.num_kv_heads, length, config.head_dim)
    scales = ("k_scale", "v_scale") if int8 else ()
    return tuple(
        {name: jnp.zeros(shape, "int8" if int8 else config.dtype) for name in "kv"}
        | {name: jnp.zeros(shape[:-1], "float32") for name in scales}
        for _ in range(config.num_layers)
    )


def written(
    layer: dict[str, jax.Array], rows: Int[Array, "B 1"], positions: Int[Array, "B C"],
    k: Float[Array, "B C K H"], v: Float[Array, "B C K H"],
) -> dict[str, jax.Array]:
    """One layer with keys and values at these places; beyond its end they are dropped."""
    new = {"k": k, "v": v}
    if "k_scale" in layer:
        for name in "kv":
            new[name], new[f"{name}_scale"] = rounded(new[name])
    return {
        name: x.at[rows, :, positions].set(new[name], mode="drop") for name, x in layer.items()
    }


def read(
    layer: dict[str, jax.Array], length: int, rows: Int[Array, " B"] | None, dtype: Any
) -> tuple[Float[Array, "B K S H"], Float[Array, "B K S H"]]:
    """Keys and values of so many positions; of these rows, None: of all."""
    part = {name: x[:, :, :length] for name, x in layer.items()}
    if rows is not None:
        part = {name: x.at[rows].get(mode="clip") for name, x in part.items()}
    if "k_scale" not in part:
        return part["k"], part["v"]
    return (widened(part["k"], part["k_scale"], dtype),
            widened(part["v"], part["v_scale"], dtype))


def lengthened(layer: dict[str, jax.Array], length: int) -> dict[str, jax.Array]:
    """One layer with room for `length` tokens, at least as many as before."""
    return {
        name: jnp.pad(x, [(0, length - x.shape[2] if axis == 2 else 0) for axis in range(x.ndim)])
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
