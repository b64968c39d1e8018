"""How a gradient becomes a step in reinforcement learning; imitation has its own."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from tarl_jax.config import RLConfig


def make_optimizer(
    config: RLConfig, learning_rate: float | None = None
) -> optax.GradientTransformation:
    """AdamW with warm-up to a constant rate, after clipping the gradient's global norm.

    learning_rate: None: the policy's.
    """
    warmup = max(config.warmup_steps, 1)
    peak = config.learning_rate if learning_rate is None else learning_rate

    def rate(count: jax.Array) -> jax.Array:
        return peak * jnp.minimum((count + 1) / warmup, 1.0)

    return optax.chain(
        optax.clip_by_global_norm(config.max_grad_norm),
        optax.adamw(rate, b1=0.9, b2=0.99, weight_decay=config.weight_decay),
    )
