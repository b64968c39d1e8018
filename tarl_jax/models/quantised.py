"""Weights, keys and values in int8, for decoding.

Symmetric rounding to the nearest, as in LLM.int8() (arXiv 2208.07339) without its outliers. Of
weights each output of a product has a scale of its own; embedding, head, norms, biases and adapters
stay as they are. Of keys and values each vector has one, as in KIVI's values (arXiv 2402.02750).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from tarl_jax.models.params import Params

WEIGHTS = ("wq", "wk", "wv", "wo", "w_gate", "w_up", "w_down")
_MOST = 127.0


def rounded(x: jax.Array, axes: tuple[int, ...] = (-1,)) -> tuple[jax.Array, jax.Array]:
    """(int8, float32 scales): `x` is within half a scale of their product.

    axes: that share a scale; the scales have the others.
    """
    wide = x.astype(jnp.float32)
    scale = jnp.maximum(jnp.abs(wide).max(axis=axes), jnp.finfo(jnp.float32).tiny) / _MOST
    return jnp.round(wide / jnp.expand_dims(scale, axes)).astype(jnp.int8), scale


def widened(x: jax.Array, scale: jax.Array, dtype: Any) -> jax.Array:
    """What `rounded` made of vectors, in `dtype`."""
    return (x * scale[..., None]).astype(dtype)


def quantised(params: Params, dtype: str) -> Params:
    """Stacked parameters with int8 weights, `<name>_scale` beside each, the rest in `dtype`.

    A weight is int8 times scale, within half a scale; scales are float32, [L, outputs].
    """
    layers = {}
    for name, x in params["layers"].items():
        if name not in WEIGHTS:
            layers[name] = x.astype(dtype)
            continue
        layers[name], layers[f"{name}_scale"] = rounded(x, (1, 2) if name == "wo" else (1,))
    others = {name: x for name, x in params.items() if name != "layers"}
    return {**jax.tree.map(lambda x: x.astype(dtype), others), "layers": layers}
