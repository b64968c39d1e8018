"""The decoder of Qwen3 and Qwen2.5 as pure functions of an explicit parameter tree.

Pre-norm blocks: grouped-query attention with rotary positions, then a SwiGLU feed-forward. Qwen3
normalises queries and keys per head (arXiv 2505.09388), Qwen2.5 adds biases to them and the values
(arXiv 2412.15115); dense models only. The arithmetic agrees with Hugging Face's `Qwen3ForCausalLM`
and `Qwen2ForCausalLM`. Layers are stacked on axis 0. Axis letters are those of `types`.

Low-rank adapters stand beside the weight that they adapt, as `<name>_a` and `<name>_b`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from tarl_jax.config import ModelConfig
from tarl_jax.models import audio_encoder
from tarl_jax.models.attention import attention_in_parts, causal_attention
from tarl_jax.models.cache import Cache, Layer, part_of, sizes_of, written
from tarl_jax.models.pages import Flat, Pool, write_and_attend
from tarl_jax.models.params import Params, named_key
from tarl_jax.parallel.mesh import constrain, place_shapes, tree_shardings


def init_params(config: ModelConfig, vocab_size: int, key: jax.Array) -> Params:
    """Random parameters: normal with std 0.02, output projections scaled by 1/sqrt(2 L).

    Those of the audio encoder, where the policy hears, are under "audio".
    """
    c, layers = config, config.num_layers
    dtype = jnp.dtype(config.param_dtype)

    def normal(name: str, *shape: int, std: float = 0.02) -> jax.Array:
        return (std * jax.random.normal(named_key(key, name), shape)).astype(dtype)

    out_std = 0.02 / (2 * layers) ** 0.5
    block = {
        "attn_norm": jnp.ones((layers, c.d_model), dtype),
        "wq": normal("wq", layers, c.d_model, c.num_heads, c.head_dim),
        "wk": normal("wk", layers, c.d_model, c.num_kv_heads, c.head_dim),
        "wv": normal("wv", layers, c.d_model, c.num_kv_heads, c.head_dim),
        "wo": normal("wo", layers, c.num_heads, c.head_dim, c.d_model, std=out_std),
        "mlp_norm": jnp.ones((layers, c.d_model), dtype),
        "w_gate": normal("w_gate", layers, c.d_model, c.d_ff),
        "w_up": normal("w_up", layers, c.d_model, c.d_ff),
        "w_down": normal("w_down", layers, c.d_ff, c.d_model, std=out_std),
    }
    if c.qk_norm:
        block["q_norm"] = jnp.ones((layers, c.head_dim), dtype)
        block["k_norm"] = jnp.ones((layers, c.head_dim), dtype)
    if c.qkv_bias:
        block["bq"] = jnp.zeros((layers, c.num_heads, c.head_dim), dtype)
        block["bk"] = jnp.zeros((layers, c.num_kv_heads, c.head_dim), dtype)
        block["bv"] = jnp.zeros((layers, c.num_kv_heads, c.head_dim), dtype)
    params = {
        "embed": normal("embed", vocab_size, c.d_model),
        "layers": block,
        "final_norm": jnp.ones((c.d_model,), dtype),
    }
    if not c.tie_embeddings:
        params["head"] = normal("head", c.d_model, vocab_size)
    if c.audio:
        params["audio"] = cast(audio_encoder.init_audio_params(c.audio, key), config.param_dtype)
    return params


LAYER_AXES: dict[str, tuple[str, ...]] = {
    "attn_norm": ("norm",), "mlp_norm": ("norm",), "q_norm": ("norm",), "k_norm": ("norm",),
    "wq": ("embed", "heads", "head_dim"), "bq": ("heads", "head_dim"),
    "wk": ("embed", "kv_heads", "head_dim"), "bk": ("kv_heads", "head_dim"),
    "wv": ("embed", "kv_heads", "head_dim"), "bv": ("kv_heads", "head_dim"),
    "wo": ("heads", "head_dim", "embed"),
    "w_gate": ("embed", "mlp"), "w_up": ("embed", "mlp"), "w_down": ("mlp", "embed"),
}  # fmt: skip
_TOP_AXES = {
    "embed": ("vocab", "embed"), "head": ("embed", "vocab"), "final_norm": ("norm",),
    "value_head": ("norm",),
}  # fmt: skip


def logical_axes(params: Params) -> Params:
    """The tree of `params` (stacked or unstacked; arrays or shapes) with each leaf's axes."""

    def of(path: tuple[Any, ...], leaf: Any) -> tuple[str | None, ...]:
        name = path[-1].key
        if path[0].key == "audio":
            return audio_encoder.logical_axes(name)
        if name in _TOP_AXES:
            return _TOP_AXES[name]
        axes: tuple[str, ...]
        if name.endswith(("_a", "_b")):
            inputs, outputs = split_axes(name[:-2])
            axes = (*inputs, "rank") if name.endswith("_a") else ("rank", *outputs)
        elif name.endswith("_scale"):
            axes = split_axes(name.removesuffix("_scale"))[1]
        else:
            axes = LAYER_AXES[name]
        return axes if len(axes) == len(leaf.shape) else ("layers", *axes)

    return jax.tree_util.tree_map_with_path(of, params)


def placed_shapes(config: ModelConfig, vocab_size: int, mesh: Mesh) -> Params:
    """Shape, dtype and sharding of every parameter."""
    shapes = jax.eval_shape(lambda: init_params(config, vocab_size, jax.random.key(0)))
    return place_shapes(shapes, tree_shardings(mesh, logical_axes(shapes)))


def split_axes(weight: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The axes of a layer's weight that it takes in, and those that it gives out."""
    axes = LAYER_AXES[weight]
    inputs = 2 if weight == "wo" else 1
    return axes[:inputs], axes[inputs:]


def unstack(params: Params) -> Params:
    """The same parameters with `layers` a tuple, one tree per layer: faster to decode with."""
    layers = params["layers"]
    count = next(iter(layers.values())).shape[0]
    return {**params, "layers": tuple(_layer(layers, i) for i in range(count))}


def _layer(layers: Params, index: int) -> Params:
    return jax.tree.map(lambda x: x[index], layers)


def cast(params: Params, dtype: str) -> Params:
    """The parameters as the products take them."""
    return jax.tree.map(lambda x: x.astype(dtype), params)


def hidden_states(
    params: Params,
    config: ModelConfig,
    tokens: Int[Array, "B S"],
    segments: Int[Array, "B S"] | None = None,
    embeddings: Float[Array, "B S D"] | None = None,
) -> Float[Array, "B S D"]:
    """Final-norm outputs for left-aligned rows. Right padding changes nothing before it.

    Args:
      segments: number of the sequence that each position belongs to, where a row holds several,
        one behind the other. Positions count from 0 in each, and none sees another.
      embeddings: inputs in place of the tokens' own, e.g. with audio merged in.
    """
    params = cast(params, config.dtype)
    length = tokens.shape[1]
    positions = jnp.arange(length)[None]
    if segments is not None:
        begins = jnp.pad(segments[:, 1:] != segments[:, :-1], ((0, 0), (1, 0)))
        positions = positions - lax.cummax(jnp.where(begins, positions, 0), axis=1)
    rotate = rotary(config, positions)

    def block(x: Array, layer: Params) -> tuple[Array, None]:
        def attend(q: Array, k: Array, v: Array) -> Array:
            return causal_attention(q, k, v, segments, config.attention)

        x = constrain(x, "rows", "tokens", "width")
        return _block(layer, config, x, rotate, attend), None

    if config.remat != "none":
        saved = {
            "full": jax.checkpoint_policies.nothing_saveable,
            "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
        }[config.remat]
        block = jax.checkpoint(block, policy=saved, prevent_cse=not config.scan_layers)
    if embeddings is None:
        embeddings = embed(params, tokens)
    x = constrain(embeddings.astype(config.dtype), "rows", "tokens", "width")
    if config.scan_layers:
        x, _ = lax.scan(block, x, params["layers"])
    else:
        for layer in unstack(params)["layers"]:
            x, _ = block(x, layer)
    return rms_norm(x, params["final_norm"], config.rms_norm_eps)


def embed(params: Params, tokens: Int[Array, "B S"]) -> Float[Array, "B S D"]:
    """The tokens' own inputs, in training."""
    # The table's width is gathered first: a lookup split along it cannot leave by rows.
    return constrain(params["embed"], "vocab", "width")[tokens]


def logits(params: Params, hidden: Float[Array, "... D"]) -> Float[Array, "... V"]:
    """Scores of every vocabulary entry, in float32."""
    head = head_weight(params).astype(hidden.dtype)
    return jnp.tensordot(hidden, head, 1, preferred_element_type=jnp.float32)


def head_weight(params: Params) -> Float[Array, "D V"]:
    """The embedding is the head where they are tied."""
    return params["head"] if "head" in params else params["embed"].T


def cached_step(
    params: Params,
    config: ModelConfig,
    cache: Cache,
    tokens: Int[Array, "B C"],
    start: Int[Array, " B"],
    rows: Int[Array, " B"] | None = None,
    embeddings: Float[Array, "B C D"] | None = None,
    most: Int[Array, ""] | None = None,
) -> tuple[Float[Array, "B C D"], Cache]:
    """Runs C tokens per row behind what the cache holds of that row; see `cache.py`.

    Args:
      params: unstacked, in the model's dtype.
      tokens: written to the cache at positions start, start + 1, …. Columns that a row does not
        need may hold anything: what they write lies beyond the row's end, where nothing attends
        and the next call overwrites it; beyond the end of the cache it is dropped.
      start: number of tokens of each row in the cache before the call.
      rows: which rows of the cache the tokens belong to; None if all, in order. A row beyond the
        cache is a filler: nothing is written for it.
      embeddings: inputs in place of the tokens' own.
      most: no token that counts stands behind this position; parts of the cache that begin behind
        it are not read. None: all are read.
    Returns: final-norm outputs and the cache.
    """
    positions = start[:, None] + jnp.arange(tokens.shape[1])
    rotate = rotary(config, positions)
    owners = (jnp.arange(tokens.shape[0]) if rows is None else rows)[:, None]
    x = params["embed"][tokens] if embeddings is None else embeddings
    new_cache = []
    for layer, kept in zip(params["layers"], cache, strict=True):

        def attend(q: Array, k: Array, v: Array, kept: Layer = kept) -> Array:
            held = written(kept, owners, positions, k, v)
            new_cache.append(held)
            read = functools.partial(part_of, held, rows=rows, dtype=q.dtype)
            return attention_in_parts(q, read, sizes_of(held), positions, most)

        x = _block(layer, config, x, rotate, attend)
    return rms_norm(x, params["final_norm"], config.rms_norm_eps), tuple(new_cache)


def paged_step(
    params: Params,
    config: ModelConfig,
    pool: Pool,
    flat: Flat,
    single: bool = False,
    embeddings: Float[Array, "N D"] | None = None,
) -> tuple[Float[Array, "N D"], Pool]:
    """Runs tokens of several sequences behind what their pages hold; see `pages.py`.

    One compiled layer, whatever the model's depth: the pool is carried from layer to layer.

    Args:
      params: stacked, in the model's dtype.
      single: each sequence has one token.
      embeddings: inputs in place of the tokens' own.
    Returns: final-norm outputs and the pool.
    """
    rotate = rotary(config, flat.positions[:, None])
    x = params["embed"][flat.tokens] if embeddings is None else embeddings

    def block(carry: tuple[Array, Pool], layer: tuple[Params, Array]) -> tuple[Any, None]:
        x, pool = carry
        weights, index = layer
        after = []

        def attend(q: Array, k: Array, v: Array) -> Array:
            out, written = write_and_attend(
                q[:, 0], k[:, 0], v[:, 0], pool, index, config.num_layers, flat, single
            )
            after.append(written)
            return out[:, None]

        x = _block(weights, config, x, rotate, attend)
        return (x, after[0]), None

    layers = params["layers"], jnp.arange(config.num_layers)
    (x, pool), _ = lax.scan(block, (x[:, None], pool), layers)
    return rms_norm(x[:, 0], params["final_norm"], config.rms_norm_eps), pool


def _block(
    layer: Params,
    config: ModelConfig,
    x: Float[Array, "B C D"],
    rotate: Callable[[Array], Array],
    attend: Callable[[Array, Array, Array], Array],
) -> Float[Array, "B C D"]:
    def project(x: Array, name: str) -> Array:
        inputs = len(split_axes(name)[0])
        # All tokens in one axis: a weight's gradient is then one plain product.
        flat = x.reshape(-1, *x.shape[2:])
        scale = layer.get(f"{name}_scale")  # of a weight in int8
        weight = layer[name] if scale is None else layer[name].astype(flat.dtype)
        out = jnp.tensordot(flat, weight, inputs)
        if scale is not None:
            out = (out * scale).astype(flat.dtype)
        if f"{name}_a" in layer:
            low = jnp.tensordot(flat, layer[f"{name}_a"], inputs)
            share = config.lora.alpha / config.lora.rank
            out = out + share * jnp.tensordot(low, layer[f"{name}_b"], 1)
        return out.reshape(*x.shape[:2], *out.shape[1:])

    h = rms_norm(x, layer["attn_norm"], config.rms_norm_eps)
    q, k, v = project(h, "wq"), project(h, "wk"), project(h, "wv")
    if config.qkv_bias:
        q, k, v = q + layer["bq"], k + layer["bk"], v + layer["bv"]
    if config.qk_norm:
        q = rms_norm(q, layer["q_norm"], config.rms_norm_eps)
        k = rms_norm(k, layer["k_norm"], config.rms_norm_eps)
    out = attend(rotate(q), rotate(k), v)
    x = x + project(out, "wo")
    h = rms_norm(x, layer["mlp_norm"], config.rms_norm_eps)
    return x + project(jax.nn.silu(project(h, "w_gate")) * project(h, "w_up"), "w_down")


def rotary(config: ModelConfig, positions: Int[Array, "B C"]) -> Callable[[Array], Array]:
    """Rotates [B, C, heads, H] by position (RoPE, arXiv 2104.09864; halves, not pairs)."""
    half = config.head_dim // 2
    frequency = config.rope_theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle = positions[:, :, None, None].astype(jnp.float32) * frequency
    cos, sin = jnp.cos(angle), jnp.sin(angle)

    def rotate(x: Array) -> Array:
        a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
        return jnp.concatenate((a * cos - b * sin, b * cos + a * sin), axis=-1).astype(x.dtype)

    return rotate


def rms_norm(x: Float[Array, "... D"], scale: Float[Array, " D"], eps: float) -> Array:
    """x / rms(x) * scale (arXiv 1910.07467)."""
    wide = x.astype(jnp.float32)
    wide = wide * lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + eps)
    return (wide * scale).astype(x.dtype)
