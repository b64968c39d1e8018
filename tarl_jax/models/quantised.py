"""Weights in int8, for decoding: each output of a product has a scale of its own.

Symmetric rounding to the nearest, as in LLM.int8() (arXiv 2208.07339) without its outliers:
embedding, head, norms, biases and adapters stay as they are.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from tarl_jax.models.params import Params

WEIGHTS = ("wq", "wk", "wv", "wo", "w_gate", "w_up", "w_down")
_MOST = 127.0


def quantised(params: Params, dtype: str) -> Params:
    """Stacked parameters with int8 weights, `<name>_scale` beside each, the rest in `dtype`.

    A weight is int8 times scale, within half a scale; scales are float32, [L, outputs].
    """
    layers = {}
    for name, x in params["layers"].items():
        if name not in WEIGHTS:
            layers[name] = x.astype(dtype)
            continue
        inputs = (1, 2) if name == "wo" else (1,)
        wide = x.astype(jnp.float32)
        scale = jnp.maximum(jnp.abs(wide).max(axis=inputs), jnp.finfo(jnp.float32).tiny) / _MOST
        layers[name] = jnp.round(wide / jnp.expand_dims(scale, inputs)).astype(jnp.int8)
        layers[f"{name}_scale"] = scale
    others = {name: x for name, x in params.items() if name != "layers"}
    return {**jax.tree.map(lambda x: x.astype(dtype), others), "layers": layers}
