"""Causal attention over whole sequences, by platform.

`xla` runs anywhere; `splash` is the Pallas kernel for TPUs, `cudnn` the fused kernel of NVIDIA
GPUs. All take packed rows: positions attend within their segment.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from tarl_jax.parallel.mesh import spec

_MASKED = -1e30  # a finite stand-in for -inf: a row whose every key is masked stays finite
Queries = Float[Array, "B S N H"]
Keys = Float[Array, "B S K H"]
Segments = Int[Array, "B S"]


def causal_attention(
    q: Queries, k: Keys, v: Keys, segments: Segments | None, kind: str
) -> Queries:
    """softmax(q k^T / sqrt(H)) v over each position and those before it in its segment.

    Args:
      segments: number of the sequence that a position belongs to; None: one sequence per row.
      kind: "auto", "xla", "splash" or "cudnn".
    """
    if kind == "auto":
        kind = _best(q)
    if kind == "splash":
        return _splash(q, k, v, segments)
    if kind == "cudnn":
        return _cudnn(q, k, v, segments)
    return _blocks(q, k, v, segments)


def _best(q: Queries) -> str:
    """The fastest kind that the devices and the shape allow."""
    where = platform()
    length, width = q.shape[1], q.shape[3]
    if where == "tpu" and length % 128 == 0 and width % 64 == 0:
        return "splash"
    if where == "gpu" and q.dtype == jnp.bfloat16 and width % 8 == 0:
        return "cudnn"
    return "xla"


def platform() -> str:
    """What the mesh is made of: programs are also compiled for devices that are not here."""
    mesh = jax.sharding.get_abstract_mesh()
    device = None if mesh.empty else getattr(mesh, "abstract_device", None)
    kind = (device.device_kind if device else "").lower()
    return "tpu" if "tpu" in kind else jax.devices()[0].platform


def _blocks(q: Queries, k: Keys, v: Keys, segments: Segments | None) -> Queries:
    """In up to eight blocks of queries, each against the keys up to its end.

    Close to half of the work, and the scores of a block fit a cache.
    """
    length = q.shape[1]
    k, v = k.swapaxes(1, 2), v.swapaxes(1, 2)
    visible = jnp.tril(jnp.ones((length, length), bool))[None]
    if segments is not None:
        visible = visible & (segments[:, :, None] == segments[:, None, :])
    size = max(-(-length // 8), 64)
    ends = [*range(size, length, size), length]
    return jnp.concatenate(
        [
            attention(q[:, at:end], k[:, :, :end], v[:, :, :end], visible[:, at:end, :end])
            for at, end in zip([0, *ends], ends, strict=False)
        ],
        axis=1,
    )


def attention(
    q: Float[Array, "B C N H"],
    k: Float[Array, "B K S H"],
    v: Float[Array, "B K S H"],
    visible: Bool[Array, "#B #C S"],
) -> Float[Array, "B C N H"]:
    """softmax(q k^T / sqrt(H)) v with N / K query heads to each key head, where `visible`."""
    singly = _singly(q)
    scores = _scores(_by_key_head(q, k.shape[1]), k, visible, singly)
    # The weights' sum divides what comes out, which is smaller than the weights. The largest score
    # cancels, so no gradient flows there.
    weights = jnp.exp(scores - lax.stop_gradient(scores.max(axis=-1, keepdims=True)))
    out = _weighted(weights.astype(v.dtype), v, singly)
    out = (out / weights.sum(axis=-1, keepdims=True)).astype(v.dtype)
    return _by_query_head(out, q.shape)


def attention_in_parts(
    q: Float[Array, "B C N H"],
    read: Callable[[int], tuple[Float[Array, "B K S H"], Float[Array, "B K S H"]]],
    sizes: Sequence[int],
    positions: Int[Array, "B C"],
    most: Int[Array, ""] | None,
) -> Float[Array, "B C N H"]:
    """`attention` of queries that see what lies up to their own position, kept in parts.

    The softmax is taken part by part (arXiv 1805.02867). Whether a part is read that a row does not
    see changes nothing of the row, to the bit.

    Args:
      read: keys and values of a part, which begins where the one before it ends.
      sizes: positions of each part.
      most: parts that begin behind this position are not read; None: all are.
    """
    first_keys, first_values = read(0)
    singly = _singly(q)
    rows = _by_key_head(q, first_keys.shape[1])

    def weigh(begin: int, k: Array, v: Array, largest: Array | None) -> tuple[Array, Array, Array]:
        """(the largest score so far, the sum of what the others are to it, that of the values)"""
        visible = begin + jnp.arange(k.shape[2]) <= positions[:, :, None]
        scores = _scores(rows, k, visible, singly)
        here = scores.max(axis=-1)
        largest = here if largest is None else jnp.maximum(here, largest)
        weights = jnp.exp(scores - largest[..., None])
        return largest, weights.sum(axis=-1), _weighted(weights.astype(v.dtype), v, singly)

    state = weigh(0, first_keys, first_values, None)
    for part, begin in enumerate(itertools.accumulate(sizes[:-1]), 1):

        def add(
            state: tuple[Array, Array, Array], part: int = part, begin: int = begin
        ) -> tuple[Array, Array, Array]:
            before, total, out = state
            largest, more, values = weigh(begin, *read(part), before)
            shrunk = jnp.exp(before - largest)
            return largest, shrunk * total + more, shrunk[..., None] * out + values

        if most is None:
            state = add(state)
        else:
            state = lax.cond(most >= begin, add, lambda same: same, state)
    _, total, out = state
    return _by_query_head((out / total[..., None]).astype(first_values.dtype), q.shape)


def _singly(q: Queries) -> bool:
    """Whether products with each query alone are the fastest.

    A CPU's compiler makes good code of matrix and vector, and bad code of products with a few rows.
    """
    return q.shape[1] == 1 and platform() == "cpu"


def _by_key_head(q: Queries, kv_heads: int) -> Float[Array, "B K M H"]:
    """Scaled; the query heads of a key head, at all positions, become rows of one matrix."""
    batch, chunk, heads, width = q.shape
    groups = heads // kv_heads
    q = q.reshape(batch, chunk, kv_heads, groups, width).transpose(0, 2, 3, 1, 4) * width**-0.5
    return q.reshape(batch, kv_heads, groups * chunk, width)


def _by_query_head(out: Float[Array, "B K M H"], shape: tuple[int, ...]) -> Queries:
    """The inverse of `_by_key_head`, for queries of this shape."""
    batch, chunk, heads, width = shape
    out = out.reshape(batch, out.shape[1], -1, chunk, width).transpose(0, 3, 1, 2, 4)
    return out.reshape(batch, chunk, heads, width)


def _scores(
    rows: Float[Array, "B K M H"], k: Float[Array, "B K S H"], visible: Bool[Array, "#B #C S"],
    singly: bool,
) -> Float[Array, "B K M S"]:
    """Products of queries and keys in float32, next to nothing where they are not visible."""
    if singly:
        each = [
            jnp.einsum("BKH,BKSH->BKS", rows[:, :, m], k, preferred_element_type=jnp.float32)
            for m in range(rows.shape[2])
        ]
        return jnp.where(visible[:, None], jnp.stack(each, axis=2), _MASKED)
    scores = jnp.einsum("BKMH,BKSH->BKMS", rows, k, preferred_element_type=jnp.float32)
    mask = jnp.tile(visible, (1, rows.shape[2] // visible.shape[1], 1))[:, None]
    return jnp.where(mask, scores, _MASKED)


def _weighted(
    weights: Float[Array, "B K M S"], v: Float[Array, "B K S H"], singly: bool
) -> Float[Array, "B K M H"]:
    """Sums of the values in float32."""
    if singly:
        return jnp.stack([
            jnp.einsum("BKS,BKSH->BKH", weights[:, :, m], v, preferred_element_type=jnp.float32)
            for m in range(weights.shape[2])
        ], axis=2)
    return jnp.einsum("BKMS,BKSH->BKMH", weights, v, preferred_element_type=jnp.float32)


def _cudnn(q: Queries, k: Keys, v: Keys, segments: Segments | None) -> Queries:
    mask = None
    if segments is not None:
        mask = (segments[:, :, None] == segments[:, None, :])[:, None]
    return jax.nn.dot_product_attention(
        q, k, v, mask=mask, is_causal=True, implementation="cudnn"
    )


def _splash(
    q: Queries, k: Keys, v: Keys, segments: Segments | None, interpret: bool = False
) -> Queries:
    """The kernel works on one device: rows and heads are split by hand."""
    mesh = jax.sharding.get_abstract_mesh()
    run = functools.partial(_splash_local, interpret=interpret)
    if mesh.empty or mesh.size == 1:
        return run(q, k, v, segments)
    queries, keys = spec("rows", None, "heads", None), spec("rows", None, "kv_heads", None)
    of_segments = None if segments is None else spec("rows", None)
    return jax.shard_map(
        run, mesh=mesh, in_specs=(queries, keys, keys, of_segments or PartitionSpec()),
        out_specs=queries, check_vma=False,
    )(q, k, v, segments)


def _splash_local(
    q: Queries, k: Keys, v: Keys, segments: Segments | None, interpret: bool
) -> Queries:
    from jax.experimental.pallas.ops.tpu.splash_attention import (
        splash_attention_kernel as kernels,
    )
    from jax.experimental.pallas.ops.tpu.splash_attention import (
        splash_attention_mask as masks,
    )

    length, heads, width = q.shape[1:]
    block = max(b for b in (128, 256, 512, 1024) if length % b == 0)
    sizes = kernels.BlockSizes(
        block_q=block, block_kv=block, block_kv_compute=block, block_q_dkv=block,
        block_kv_dkv=block, block_kv_dkv_compute=block, block_q_dq=block, block_kv_dq=block,
    )
    mask = masks.MultiHeadMask([masks.CausalMask((length, length))] * heads)
    kernel = kernels.make_splash_mha(
        mask=mask, head_shards=1, q_seq_shards=1, block_sizes=sizes, interpret=interpret
    )

    def one(q: Array, k: Array, v: Array, segment: Array | None) -> Array:
        ids = None if segment is None else kernels.SegmentIds(q=segment, kv=segment)
        q, k, v = (x.swapaxes(0, 1) for x in (q * width**-0.5, k, v))
        return kernel(q, k, v, segment_ids=ids).swapaxes(0, 1)

    return jax.vmap(one, in_axes=(0, 0, 0, None if segments is None else 0))(q, k, v, segments)
