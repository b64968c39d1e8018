"""The key/value cache of a set of rows: per layer {"k", "v"}, each in parts [B, K, S, H].

A part holds the positions behind those of the part before it. Programs read the parts that hold
something, as they are; of one long array they would have to copy a slice first. In int8 a layer has
"k_scale" and "v_scale" beside them, float32 [B, K, S].

Kept per layer and not stacked: a stacked cache is copied by every scan over the layers. Heads
before positions, so that one head's keys lie together and a decode step reads them in order.
"""

from __future__ import annotations

import itertools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from tarl_jax.config import ModelConfig
from tarl_jax.models.quantised import rounded, widened

Layer = dict[str, tuple[jax.Array, ...]]
Cache = tuple[Layer, ...]
_GRAIN = 128  # positions of the smallest parts; the longest cache is rounded up to a multiple of it
_GROWN = 4096  # positions; a cache of more begins at a quarter, and grows
_BEYOND = 2**31 - 1  # a position that no part has


def part_sizes(length: int) -> list[int]:
    """Positions of each part of a cache for `length` tokens, those far behind the larger ones.

    A longer cache has the parts of a shorter one, whose last may be cut off, and more.
    """
    sizes, end = [], 0
    while end < length:
        octave = 1 << end.bit_length() >> 1
        sizes.append(min(max(_GRAIN, octave // 4), length - end))
        end += sizes[-1]
    return sizes


def empty_cache(config: ModelConfig, rows: int, length: int, int8: bool = False) -> Cache:
    """A cache of zeros for `rows` rows of up to `length` tokens."""
    return tuple(
        _empty_layer(config, rows, part_sizes(length), int8) for _ in range(config.num_layers)
    )


def _empty_layer(config: ModelConfig, rows: int, sizes: list[int], int8: bool) -> Layer:
    shapes = [(rows, config.num_kv_heads, size, config.head_dim) for size in sizes]
    layer = {
        name: tuple(jnp.zeros(shape, "int8" if int8 else config.dtype) for shape in shapes)
        for name in "kv"
    }
    if int8:
        for name in "kv":
            layer[f"{name}_scale"] = tuple(jnp.zeros(shape[:-1], "float32") for shape in shapes)
    return layer


def sizes_of(layer: Layer) -> list[int]:
    """Positions of each part."""
    return [part.shape[2] for part in layer["k"]]


def length_of_cache(cache: Cache) -> int:
    """Positions that a cache has room for."""
    return sum(sizes_of(cache[0]))


def written(
    layer: Layer, rows: Int[Array, "B 1"], positions: Int[Array, "B C"],
    k: Float[Array, "B C K H"], v: Float[Array, "B C K H"],
) -> Layer:
    """One layer with keys and values at these places; beyond its end they are dropped."""
    new = {"k": k, "v": v}
    if "k_scale" in layer:
        for name in "kv":
            new[name], new[f"{name}_scale"] = rounded(new[name])
    ends = itertools.accumulate(sizes_of(layer), initial=0)
    # Negative places would be counted from a part's end.
    places = [jnp.where(positions >= begin, positions - begin, _BEYOND) for begin in ends]
    return {
        name: tuple(
            part.at[rows, :, place].set(new[name], mode="drop")
            for part, place in zip(parts, places[:-1], strict=True)
        )
        for name, parts in layer.items()
    }


def part_of(
    layer: Layer, part: int, rows: Int[Array, " B"] | None, dtype: Any
) -> tuple[Float[Array, "B K S H"], Float[Array, "B K S H"]]:
    """Keys and values of a part; of these rows, None: of all."""
    held = {name: parts[part] for name, parts in layer.items()}
    if rows is not None:
        held = {name: x.at[rows].get(mode="clip") for name, x in held.items()}
    if "k_scale" not in held:
        return held["k"], held["v"]
    return (widened(held["k"], held["k_scale"], dtype),
            widened(held["v"], held["v_scale"], dtype))


def lengthened(cache: Cache, more: Cache) -> Cache:
    """The cache with more parts behind its own."""
    return tuple(
        {name: old[name] + new[name] for name in old} for old, new in zip(cache, more, strict=True)
    )


def rows_of(cache: Cache, rows: Int[Array, " B"]) -> Cache:
    """The given rows of a cache."""
    return jax.tree.map(lambda x: x[rows], cache)


def cache_rooms(most: int, least: int = 0) -> list[int]:
    """How many tokens caches have room for that hold up to `most`, the shortest first.

    One as long as the longest, and before a long one some of a quarter of the next, where parts of
    it end. Those that do not hold `least` tokens are left out.
    """
    rooms = [-(-most // _GRAIN) * _GRAIN]
    ends = list(itertools.accumulate(part_sizes(rooms[0])))
    while rooms[0] > _GROWN and (short := [end for end in ends if end <= rooms[0] // 4]):
        rooms.insert(0, short[-1])
    return [room for room in rooms[:-1] if room >= least] + rooms[-1:]
