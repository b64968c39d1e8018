"""Keys and values in pages: a pool per shard of the batch, read through each row's page table.

A pool holds, for each layer, pages of `size` tokens; layer l's pages stand at l * P to (l + 1) * P,
so that one array is carried through the scan over the layers and written in place. Page 0 of each
layer is nobody's: what fillers write goes there.

Two layouts, by kernel. "ragged", for TPUs: `{"kv": [L P, size, 2 K, H]}`, keys and values of a
head side by side, as JAX's `ragged_paged_attention` reads them. "split", for GPUs and CPUs:
`{"k", "v"}`, each [K, L P, size, H], as JAX's `paged_attention` for GPUs does. In int8 this has
`{"k_scale", "v_scale"}` beside them, float32 [K, L P, size], a scale for each vector; the kernel
for TPUs knows none, so that there the plain version reads it.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from tarl_jax.config import ModelConfig
from tarl_jax.models.attention import attention, platform
from tarl_jax.models.quantised import rounded, widened
from tarl_jax.parallel.mesh import spec

Pool = dict[str, jax.Array]
QUERIES = 128  # of one sequence, that the plain version takes at a time
_AXES = {  # of a pool's arrays
    "kv": ("rows", None, "kv_heads", None),
    "k": ("kv_heads", "rows", None, None),
    "v": ("kv_heads", "rows", None, None),
    "k_scale": ("kv_heads", "rows", None),
    "v_scale": ("kv_heads", "rows", None),
}


@struct.dataclass
class Flat:
    """Tokens of several sequences, one behind the other; S shards have as many of each.

    Attributes:
      tokens: int32 [N].
      positions: int32 [N]; in the sequence.
      pages: int32 [N]; where each one's key and value go, counted within the shard; 0: a filler.
      tables: int32 [Q, M]; pages of each sequence, in order.
      lengths: int32 [Q]; tokens of each sequence, those here included: they are its last ones.
      begins: int32 [Q + S]; of each shard: where its sequences begin among its tokens, and where
        the last one ends.
      count: int32 [S]; how many of the shard's sequences there are.
    """

    tokens: jax.Array
    positions: jax.Array
    pages: jax.Array
    tables: jax.Array
    lengths: jax.Array
    begins: jax.Array
    count: jax.Array


def layout(config: ModelConfig, int8: bool = False) -> str:
    """Of a pool on the mesh that is set, or on this process's devices."""
    if int8:
        return "int8"
    return "ragged" if platform() == "tpu" and config.head_dim % 128 == 0 else "split"


def empty_pool(config: ModelConfig, pages: int, size: int, kind: str) -> Pool:
    """Zeros for `pages` pages of all shards together, in the model's dtype or in int8."""
    count, heads, width = config.num_layers * pages, config.num_kv_heads, config.head_dim
    if kind == "ragged":
        return {"kv": jnp.zeros((count, size, 2 * heads, width), config.dtype)}
    shape = heads, count, size
    dtype = "int8" if kind == "int8" else config.dtype
    pool = {name: jnp.zeros((*shape, width), dtype) for name in "kv"}
    if kind == "int8":
        pool |= {f"{name}_scale": jnp.zeros(shape, "float32") for name in "kv"}
    return pool


def pool_axes(pool: Pool) -> dict[str, tuple[str | None, ...]]:
    """The logical axes of a pool's arrays, or shapes."""
    return {name: _AXES[name] for name in pool}


def write_and_attend(
    q: Float[Array, "N n H"],
    k: Float[Array, "N K H"],
    v: Float[Array, "N K H"],
    pool: Pool,
    layer: Int[Array, ""],
    layers: int,
    flat: Flat,
    single: bool,
) -> tuple[Float[Array, "N n H"], Pool]:
    """Keys and values enter the pool, then each token attends to its sequence up to itself.

    single: each sequence has one token, the sequences in the order of the tokens.
    """
    run = functools.partial(_local, layers=layers, single=single)
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return run(q, k, v, pool, layer, flat)
    rows, none = spec("rows"), PartitionSpec()
    queries, keys = spec("rows", "heads", None), spec("rows", "kv_heads", None)
    pools = {name: spec(*axes) for name, axes in pool_axes(pool).items()}
    return jax.shard_map(
        run, mesh=mesh,
        in_specs=(queries, keys, keys, pools, none, jax.tree.map(lambda _: rows, flat)),
        out_specs=(queries, pools), check_vma=False,
    )(q, k, v, pool, layer, flat)


def _local(
    q: Array, k: Array, v: Array, pool: Pool, layer: Array, flat: Flat, *, layers: int,
    single: bool,
) -> tuple[Array, Pool]:
    ragged = "kv" in pool
    count, size = (pool["kv"].shape[:2] if ragged else pool["k"].shape[1:3])
    base = layer * (count // layers)
    pages, offsets, tables = base + flat.pages, flat.positions % size, base + flat.tables
    if ragged:
        both = jnp.stack((k, v), axis=2).reshape(k.shape[0], -1, k.shape[-1])
        pool = {"kv": pool["kv"].at[pages, offsets].set(both)}
        return _ragged(q, pool["kv"], tables, flat), pool
    new = {"k": k, "v": v}
    if "k_scale" in pool:
        for name in "kv":
            new[name], new[f"{name}_scale"] = rounded(new[name])
    pool = {
        name: x.at[:, pages, offsets].set(new[name].swapaxes(0, 1)) for name, x in pool.items()
    }
    if not single:
        return _in_blocks(q, pool, tables, flat), pool
    # By what it is lowered for, which may not be here.
    return lax.platform_dependent(
        q, pool, tables, flat.lengths, cuda=_gpu, default=_one_each
    ), pool


def _ragged(q: Array, pages: Array, tables: Array, flat: Flat) -> Array:
    from jax.experimental.pallas.ops.tpu.ragged_paged_attention import ragged_paged_attention

    return ragged_paged_attention(
        q, pages, flat.lengths, tables, flat.begins, flat.count, sm_scale=q.shape[-1] ** -0.5,
        num_kv_pages_per_block=min(16, tables.shape[1]),
        num_queries_per_block=min(32, q.shape[0]), vmem_limit_bytes=64 * 2**20,
    )


def _gpu(q: Array, pool: Pool, tables: Array, lengths: Array, interpret: bool = False) -> Array:
    from jax.experimental.pallas.ops.gpu.paged_attention import paged_attention

    depth = tables.shape[1]
    splits = next(n for n in (16, 8, 4, 2, 1) if depth % n == 0)
    together = next(n for n in (8, 4, 2, 1) if depth // splits % n == 0)
    return paged_attention(
        q * q.shape[-1] ** -0.5, pool["k"], pool["v"], tables, lengths, pool.get("k_scale"),
        pool.get("v_scale"), k_splits=splits, pages_per_compute_block=together,
        interpret=interpret,
    )


def _read(pool: Pool, tables: Array, dtype: Any) -> tuple[Array, Array]:
    """Keys and values of sequences, [Q, K, M * size, H]."""
    def take(name: str) -> Array:
        found = pool[name][:, tables].swapaxes(0, 1)
        if "k_scale" in pool:
            found = widened(found, pool[f"{name}_scale"][:, tables].swapaxes(0, 1), dtype)
        return found.reshape(*found.shape[:2], -1, found.shape[-1])

    return take("k"), take("v")


def _one_each(q: Array, pool: Pool, tables: Array, lengths: Array) -> Array:
    k, v = _read(pool, tables, q.dtype)
    visible = jnp.arange(k.shape[2]) < lengths[:, None, None]
    return attention(q[:, None], k, v, visible)[:, 0]


def _in_blocks(q: Array, pool: Pool, tables: Array, flat: Flat) -> Array:
    """Blocks of one sequence's queries each, one after the other."""
    tokens, sequences = q.shape[0], tables.shape[0]
    size = min(QUERIES, tokens)
    there = jnp.arange(sequences) < flat.count[0]
    own = jnp.where(there, flat.begins[1:] - flat.begins[:-1], 0)
    ends = jnp.cumsum(-(-own // size))  # of each sequence, in blocks

    def block(out: Array, number: Array) -> tuple[Array, None]:
        def work(out: Array) -> Array:
            sequence = jnp.searchsorted(ends, number, side="right")
            before = number - (ends[sequence] - -(-own[sequence] // size))
            places = before * size + jnp.arange(size)
            positions = flat.lengths[sequence] - own[sequence] + places
            index = jnp.where(places < own[sequence], flat.begins[sequence] + places, tokens)
            k, v = _read(pool, tables[sequence][None], q.dtype)
            visible = jnp.arange(k.shape[2]) <= positions[None, :, None]
            new = attention(q.at[index].get(mode="clip")[None], k, v, visible)[0]
            return out.at[index].set(new, mode="drop")

        return lax.cond(number < ends[-1], work, lambda out: out, out), None

    return lax.scan(block, jnp.zeros_like(q), jnp.arange(tokens // size + sequences))[0]
