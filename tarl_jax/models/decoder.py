"""Qwen3's decoder as pure functions of an explicit parameter tree (layers stacked).

Pre-norm blocks: grouped-query attention with per-head RMSNorm on queries and keys and rotary
positions, then a SwiGLU feed-forward. Source: the Qwen3 technical report (arXiv 2505.09388); the
arithmetic agrees with Hugging Face's `Qwen3ForCausalLM`. Axis letters are those of `types.py`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from tarl_jax.config import ModelConfig

Params = dict[str, Any]
_MASKED = -1e30  # a finite stand-in for -inf: a row whose every key is masked stays finite


def named_key(key: jax.Array, name: str) -> jax.Array:
    """A random stream by name: adding a stream never shifts the others."""
    return jax.random.fold_in(key, int.from_bytes(hashlib.sha256(name.encode()).digest()[:4]))


def init_params(config: ModelConfig, vocab_size: int, key: jax.Array) -> Params:
    """Random parameters: normal with std 0.02, output projections scaled by 1/sqrt(2 L)."""
    c, layers = config, config.num_layers

    def normal(name: str, *shape: int, std: float = 0.02) -> jax.Array:
        return std * jax.random.normal(named_key(key, name), shape, jnp.float32)

    out_std = 0.02 / (2 * layers) ** 0.5
    block = {
        "attn_norm": jnp.ones((layers, c.d_model)),
        "wq": normal("wq", layers, c.d_model, c.num_heads, c.head_dim),
        "wk": normal("wk", layers, c.d_model, c.num_kv_heads, c.head_dim),
        "wv": normal("wv", layers, c.d_model, c.num_kv_heads, c.head_dim),
        "wo": normal("wo", layers, c.num_heads, c.head_dim, c.d_model, std=out_std),
        "mlp_norm": jnp.ones((layers, c.d_model)),
        "w_gate": normal("w_gate", layers, c.d_model, c.d_ff),
        "w_up": normal("w_up", layers, c.d_model, c.d_ff),
        "w_down": normal("w_down", layers, c.d_ff, c.d_model, std=out_std),
    }
    if c.qk_norm:
        block["q_norm"] = jnp.ones((layers, c.head_dim))
        block["k_norm"] = jnp.ones((layers, c.head_dim))
    if c.qkv_bias:
        block["bq"] = jnp.zeros((layers, c.num_heads, c.head_dim))
        block["bk"] = jnp.zeros((layers, c.num_kv_heads, c.head_dim))
        block["bv"] = jnp.zeros((layers, c.num_kv_heads, c.head_dim))
    params = {
        "embed": normal("embed", vocab_size, c.d_model),
        "layers": block,
        "final_norm": jnp.ones((c.d_model,)),
    }
    if not c.tie_embeddings:
        params["head"] = normal("head", c.d_model, vocab_size)
    return params


def unstack(params: Params) -> Params:
    """The same parameters with `layers` a tuple, one tree per layer: faster to decode with."""
    layers = params["layers"]
    count = layers["attn_norm"].shape[0]
    return {**params, "layers": tuple(_layer(layers, i) for i in range(count))}


def _layer(layers: Params, index: int) -> Params:
    return jax.tree.map(lambda x: x[index], layers)


def hidden_states(
    params: Params, config: ModelConfig, tokens: Int[Array, "B S"]
) -> Float[Array, "B S D"]:
    """Final-norm outputs for left-aligned rows. Right padding changes nothing before it."""
    length = tokens.shape[1]
    rotate = rotary(config, jnp.arange(length)[None])

    def block(x: Array, layer: Params) -> tuple[Array, None]:
        return _block(layer, config, x, rotate, causal_attention), None

    x = params["embed"][tokens]
    if config.scan_layers:
        x, _ = lax.scan(block, x, params["layers"])
    else:
        for layer in unstack(params)["layers"]:
            x, _ = block(x, layer)
    return rms_norm(x, params["final_norm"], config.rms_norm_eps)


def logits(params: Params, hidden: Float[Array, "... D"]) -> Float[Array, "... V"]:
    """Scores of every vocabulary entry; the embedding is the head where they are tied."""
    head = params["head"] if "head" in params else params["embed"].T
    return hidden @ head


def cached_step(
    params: Params,
    config: ModelConfig,
    cache: tuple[dict[str, Array], ...],
    tokens: Int[Array, "B C"],
    start: Int[Array, " B"],
    rows: Int[Array, " B"] | None = None,
) -> tuple[Float[Array, "B C D"], tuple[dict[str, Array], ...]]:
    """Runs C tokens per row behind what the cache holds of that row; see `cache.py`.

    Args:
      params: unstacked.
      tokens: written to the cache at positions start, start + 1, …. Columns that a row does not
        need may hold anything: what they write lies beyond the row's end, where nothing attends
        and the next call overwrites it; beyond the end of the cache it is dropped.
      start: number of tokens of each row in the cache before the call.
      rows: which rows of the cache the tokens belong to; None if all, in order. A row beyond the
        cache is a filler: nothing is written for it.
    Returns: final-norm outputs and the cache.
    """
    positions = start[:, None] + jnp.arange(tokens.shape[1])
    rotate = rotary(config, positions)
    owners = (jnp.arange(tokens.shape[0]) if rows is None else rows)[:, None]
    x = params["embed"][tokens]
    new_cache = []
    for layer, kept in zip(params["layers"], cache, strict=True):

        def attend(q: Array, k: Array, v: Array, kept: dict[str, Array] = kept) -> Array:
            keys = kept["k"].at[owners, :, positions].set(k, mode="drop")
            values = kept["v"].at[owners, :, positions].set(v, mode="drop")
            new_cache.append({"k": keys, "v": values})
            if rows is not None:
                keys, values = (x.at[rows].get(mode="clip") for x in (keys, values))
            visible = jnp.arange(keys.shape[2]) <= positions[:, :, None]
            return attention(q, keys, values, visible)

        x = _block(layer, config, x, rotate, attend)
    return rms_norm(x, params["final_norm"], config.rms_norm_eps), tuple(new_cache)


def _block(
    layer: Params,
    config: ModelConfig,
    x: Float[Array, "B C D"],
    rotate: Callable[[Array], Array],
    attend: Callable[[Array, Array, Array], Array],
) -> Float[Array, "B C D"]:
    h = rms_norm(x, layer["attn_norm"], config.rms_norm_eps)
    q = jnp.einsum("BCD,DNH->BCNH", h, layer["wq"])
    k = jnp.einsum("BCD,DKH->BCKH", h, layer["wk"])
    v = jnp.einsum("BCD,DKH->BCKH", h, layer["wv"])
    if config.qkv_bias:
        q, k, v = q + layer["bq"], k + layer["bk"], v + layer["bv"]
    if config.qk_norm:
        q = rms_norm(q, layer["q_norm"], config.rms_norm_eps)
        k = rms_norm(k, layer["k_norm"], config.rms_norm_eps)
    out = attend(rotate(q), rotate(k), v)
    x = x + jnp.einsum("BCNH,NHD->BCD", out, layer["wo"])
    h = rms_norm(x, layer["mlp_norm"], config.rms_norm_eps)
    return x + (jax.nn.silu(h @ layer["w_gate"]) * (h @ layer["w_up"])) @ layer["w_down"]


def causal_attention(
    q: Float[Array, "B S N H"], k: Float[Array, "B S K H"], v: Float[Array, "B S K H"]
) -> Float[Array, "B S N H"]:
    """Attention of every position to itself and those before it.

    In up to eight blocks of queries, each against the keys up to its end: close to half of the
    work, and the scores of a block fit a cache.
    """
    length = q.shape[1]
    k, v = k.swapaxes(1, 2), v.swapaxes(1, 2)
    size = max(-(-length // 8), 64)
    ends = [*range(size, length, size), length]
    visible = jnp.tril(jnp.ones((length, length), bool))[None]
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
    visible: Bool[Array, "#B C S"],
) -> Float[Array, "B C N H"]:
    """softmax(q k^T / sqrt(H)) v with N / K query heads to each key head."""
    batch, chunk, heads, width = q.shape
    kv_heads = k.shape[1]
    groups = heads // kv_heads
    # The query heads of a key head become rows of one matrix: two plain batched products.
    q = q.reshape(batch, chunk, kv_heads, groups, width).transpose(0, 2, 3, 1, 4) * width**-0.5
    q = q.reshape(batch, kv_heads, groups * chunk, width)
    scores = jnp.einsum("BKCH,BKSH->BKCS", q, k)
    mask = jnp.tile(visible, (1, groups, 1))[:, None]
    weights = jax.nn.softmax(jnp.where(mask, scores, _MASKED), axis=-1)
    out = jnp.einsum("BKCS,BKSH->BKCH", weights, v)
    out = out.reshape(batch, kv_heads, groups, chunk, width).transpose(0, 3, 1, 2, 4)
    return out.reshape(batch, chunk, heads, width)


def rotary(config: ModelConfig, positions: Int[Array, "B C"]) -> Callable[[Array], Array]:
    """Rotates [B, C, heads, H] by position (RoPE, arXiv 2104.09864; halves, not pairs)."""
    half = config.head_dim // 2
    frequency = config.rope_theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle = positions[:, :, None, None].astype(jnp.float32) * frequency
    cos, sin = jnp.cos(angle), jnp.sin(angle)

    def rotate(x: Array) -> Array:
        a, b = x[..., :half], x[..., half:]
        return jnp.concatenate((a * cos - b * sin, b * cos + a * sin), axis=-1)

    return rotate


def rms_norm(x: Float[Array, "... D"], scale: Float[Array, " D"], eps: float) -> Array:
    """x / rms(x) * scale (arXiv 1910.07467)."""
    return x * lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + eps) * scale
