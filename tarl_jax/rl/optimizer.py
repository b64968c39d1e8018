"""How a gradient becomes a step in reinforcement learning; imitation has its own."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from tarl_jax.config import RLConfig


def make_optimizer(
    config: RLConfig, learning_rate: float | None = None
) -> optax.GradientTransformation:
    """AdamW after clipping the gradient's global norm.

    The rate rises to its peak, stays there or falls in a straight line, and stays where that ends.
    An audio encoder takes smaller steps: `rl.encoder_rate`.

    learning_rate: the peak; None: the policy's.
    """
    warmup = max(config.warmup_steps, 1)
    falling = config.decay_steps * config.minibatches * config.epochs  # updates
    peak = config.learning_rate if learning_rate is None else learning_rate

    def rate(count: jax.Array) -> jax.Array:
        rising = jnp.minimum((count + 1) / warmup, 1.0)
        if not falling:
            return peak * rising
        gone = jnp.minimum(count / falling, 1.0)
        return peak * jnp.minimum(rising, 1.0 - (1.0 - config.final_rate) * gone)

    optimizer = optax.chain(
        optax.clip_by_global_norm(config.max_grad_norm),
        optax.adamw(rate, b1=0.9, b2=0.99, weight_decay=config.weight_decay),
    )

    # Not a further transformation of the chain: the state is that of runs that began without.
    def update(gradient: dict[str, Any], state: optax.OptState, params: Any = None):
        updates, state = optimizer.update(gradient, state, params)
        if "audio" in updates:
            slower = jax.tree.map(lambda x: config.encoder_rate * x, updates["audio"])
            updates = {**updates, "audio": slower}
        return updates, state

    return optax.GradientTransformation(optimizer.init, update)
