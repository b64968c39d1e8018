"""Losses per token, as sums with their counts, so that micro-batches add up exactly."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float


def clipped_policy_loss(
    log_probs: Float[Array, "B S"],
    old_log_probs: Float[Array, "B S"],
    advantages: Float[Array, "B S"],
    mask: Float[Array, "B S"],
    clip_low: float,
    clip_high: float,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """PPO's clipped surrogate (arXiv 1707.06347), with separate bounds (arXiv 2503.14476).

        sum over masked tokens of -min(w A, clip(w, 1 - clip_low, 1 + clip_high) A),
        w = exp(log_probs - old_log_probs)

    Returns: (the sum, how many masked tokens the clip held back).
    """
    ratio = jnp.exp(jnp.where(mask > 0, log_probs - old_log_probs, 0.0))
    plain = ratio * advantages
    clipped = jnp.clip(ratio, 1 - clip_low, 1 + clip_high) * advantages
    loss = -jnp.sum(mask * jnp.minimum(plain, clipped))
    return loss, jnp.sum(mask * (clipped < plain))


def kl_k3(
    log_probs: Float[Array, "B S"], other: Float[Array, "B S"], mask: Float[Array, "B S"]
) -> Float[Array, ""]:
    """Sum over masked tokens of exp(d) - d - 1, d = other - log_probs.

    With tokens drawn from `log_probs` its mean is KL(policy || other), never negative and of low
    variance (Schulman, "Approximating KL divergence", 2020).
    """
    d = jnp.where(mask > 0, other - log_probs, 0.0)
    return jnp.sum(mask * (jnp.exp(d) - d - 1))
