"""Causal attention over whole sequences, by platform.

`xla` runs anywhere; `splash` is the Pallas kernel for TPUs, `cudnn` the fused kernel of NVIDIA
GPUs. All take packed rows: positions attend within their segment.
"""

from __future__ import annotations

import functools

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
    batch, chunk, heads, width = q.shape
    kv_heads = k.shape[1]
    groups = heads // kv_heads
    if chunk == 1 and platform() == "cpu":
        return _one_by_one(q, k, v, visible)
    # The query heads of a key head become rows of one matrix: two plain batched products.
    q = q.reshape(batch, chunk, kv_heads, groups, width).transpose(0, 2, 3, 1, 4) * width**-0.5
    q = q.reshape(batch, kv_heads, groups * chunk, width)
    scores = jnp.einsum("BKCH,BKSH->BKCS", q, k, preferred_element_type=jnp.float32)
    mask = jnp.tile(visible, (1, groups, 1))[:, None]
    scores = jnp.where(mask, scores, _MASKED)
    # The weights' sum divides what comes out, which is smaller than the weights. The largest score
    # cancels, so no gradient flows there.
    weights = jnp.exp(scores - lax.stop_gradient(scores.max(axis=-1, keepdims=True)))
    out = jnp.einsum(
        "BKCS,BKSH->BKCH", weights.astype(v.dtype), v, preferred_element_type=jnp.float32
    )
    out = (out / weights.sum(axis=-1, keepdims=True)).astype(v.dtype)
    out = out.reshape(batch, kv_heads, groups, chunk, width).transpose(0, 3, 1, 2, 4)
    return out.reshape(batch, chunk, heads, width)


def _one_by_one(
    q: Float[Array, "B 1 N H"],
    k: Float[Array, "B K S H"],
    v: Float[Array, "B K S H"],
    visible: Bool[Array, "#B 1 S"],
) -> Float[Array, "B 1 N H"]:
    """`attention` of one position, a product of matrix and vector for each query head.

    A CPU's compiler makes good code of that, and bad code of products with a few rows.
    """
    batch, _, heads, width = q.shape
    groups = heads // k.shape[1]
    q = q.reshape(batch, -1, groups, width) * width**-0.5
    out = []
    for member in range(groups):
        scores = jnp.einsum(
            "BKH,BKSH->BKS", q[:, :, member], k, preferred_element_type=jnp.float32
        )
        weights = jax.nn.softmax(jnp.where(visible, scores, _MASKED), axis=-1).astype(v.dtype)
        out.append(jnp.einsum("BKS,BKSH->BKH", weights, v))
    return jnp.stack(out, axis=2).reshape(batch, 1, heads, width)


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
