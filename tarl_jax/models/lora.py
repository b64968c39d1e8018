"""Low-rank adapters (arXiv 2106.09685): W + alpha / rank * A B, with W frozen."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from tarl_jax.config import ModelConfig
from tarl_jax.models.decoder import Params, named_key, split_axes


def init_adapters(config: ModelConfig, params: Params, key: jax.Array) -> Params:
    """Adapters for the targets of the stacked `params`, float32; B is zero, so W as it was.

    A is uniform in ±1 / sqrt(inputs of W), whatever the rank: PEFT's and LoRA's own start
    (kaiming_uniform with a = sqrt 5), at which learning rates of others mean the same.

    params: arrays or shapes.
    """
    rank = config.lora.rank
    adapters = {}
    for name in config.lora.targets:
        shape = params["layers"][name].shape
        layers, axes = shape[0], shape[1:]
        inputs = axes[: len(split_axes(name)[0])]
        outputs = axes[len(inputs):]
        bound = math.prod(inputs) ** -0.5
        adapters[f"{name}_a"] = jax.random.uniform(
            named_key(key, f"lora/{name}"), (layers, *inputs, rank), jnp.float32, -bound, bound
        )
        adapters[f"{name}_b"] = jnp.zeros((layers, rank, *outputs))
    return {"layers": adapters}


def frozen_part(config: ModelConfig, params: Params) -> Params:
    """What of all parameters of a policy (arrays or shapes) does not train; {}: all do."""
    if config.lora.rank:
        return params
    return {"audio": params["audio"]} if config.audio and config.audio.frozen else {}


def trained_part(config: ModelConfig, params: Params, key: jax.Array) -> Params:
    """What trains: fresh adapters on the parameters, or those that are not frozen."""
    if config.lora.rank:
        return init_adapters(config, params, key)
    frozen = frozen_part(config, params)
    return {name: x for name, x in params.items() if name not in frozen}


def join(frozen: Params, trained: Params) -> Params:
    """One tree of two that share no leaf."""
    both = dict(frozen)
    for name, value in trained.items():
        if name not in both:
            both[name] = value
        elif isinstance(value, dict):
            both[name] = join(both[name], value)
        else:
            raise ValueError(f"{name!r} is frozen and trained at once")
    return both


def merge(params: Params, config: ModelConfig) -> Params:
    """The stacked parameters with the adapters multiplied out and added to their weights."""
    layers = dict(params["layers"])
    scale = config.lora.alpha / max(config.lora.rank, 1)
    for name in [n[:-2] for n in layers if n.endswith("_a")]:
        a, b, weight = layers.pop(f"{name}_a"), layers.pop(f"{name}_b"), layers[name]
        product = jax.vmap(lambda a, b: jnp.tensordot(a, b, 1))(a, b)
        layers[name] = (weight.astype(jnp.float32) + scale * product).astype(weight.dtype)
    return {**params, "layers": layers}
