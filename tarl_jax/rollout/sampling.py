"""Drawing tokens on the device."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def sample(
    scores: jax.Array, keys: jax.Array, positions: jax.Array, temperature: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """One token per row from softmax(scores / temperature), and its log-probability.

    Args:
      scores: [B, V].
      keys: one PRNG key per row.
      positions: [B]; folded into the row's key, so that a draw depends on nothing else.
    """
    log_probs = jax.nn.log_softmax(scores / temperature, axis=-1)
    noise = jax.vmap(
        lambda key, position: jax.random.gumbel(
            jax.random.fold_in(key, position), scores.shape[-1:]
        )
    )(keys, positions)
    token = jnp.argmax(log_probs + noise, axis=-1)
    return token, jnp.take_along_axis(log_probs, token[:, None], axis=-1)[:, 0]
