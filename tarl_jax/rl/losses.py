"""Losses per token, as sums with their counts, so that micro-batches add up exactly.

A mean is a choice of weights: `loss_weights` gives each token its weight and the number that the
sum is divided by once all micro-batches are in. Every loss takes those weights.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from tarl_jax.config import RLConfig
from tarl_jax.types import Batch

# (log-probs of the tokens now [B, S], the batch, each token's weight [B, S], config) -> (the
# weighted sum of the loss, how many sampled tokens it holds back).
PolicyLoss = Callable[[Array, Batch, Array, RLConfig], tuple[Array, Array]]

MAX_CHANGE = 20.0  # of a log-prob, before exp: no ratio overflows, whatever the policy has become


def loss_weights(
    mask: Float[Array, "B S"], segments: Int[Array, "B S"] | None, mean: str, constant: int,
    shares: Float[Array, "B S"] | None = None,
) -> tuple[Float[Array, "B S"], Float[Array, ""]]:
    """(weight of each token, what the weighted sum is divided by).

        "token"     1                    number of tokens       (DAPO, arXiv 2503.14476)
        "sequence"  1 / |y|              number of episodes     (GRPO, arXiv 2402.03300)
        "constant"  1 / constant         number of episodes     (Dr. GRPO, arXiv 2503.20783)

    |y| counts the masked tokens of an episode; episodes without any do not count. An episode may be
    several sequences, also of other batches: `shares` then has 1 / |y| at its masked tokens. None:
    each sequence is an episode.
    """
    if mean == "token":
        return mask, mask.sum()
    if shares is None:
        shares = mask / jnp.maximum(sequence_sums(mask, segments), 1.0)
    return (shares if mean == "sequence" else mask / constant), shares.sum()


def sequence_sums(
    x: Float[Array, "B S"], segments: Int[Array, "B S"] | None
) -> Float[Array, "B S"]:
    """At every position the sum of `x` over its sequence."""
    if segments is None:
        return jnp.broadcast_to(x.sum(axis=1, keepdims=True), x.shape)

    def of_row(x: Array, segments: Array) -> Array:
        # A row of S positions holds at most S sequences, numbered from 1; 0 is padding.
        return jax.ops.segment_sum(x, segments, num_segments=x.shape[0] + 1)[segments]

    return jax.vmap(of_row)(x, segments)


def clipped_policy_loss(
    log_probs: Float[Array, "B S"], batch: Batch, weights: Float[Array, "B S"], config: RLConfig
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """PPO's clipped surrogate (arXiv 1707.06347), with separate bounds (arXiv 2503.14476).

        sum over sampled tokens of -min(w A, clip(w, 1 - clip_low, 1 + clip_high) A),
        w = exp(log_probs - batch.log_probs)

    With `dual_clip` = c the loss of a token with A < 0 is at most -c A (arXiv 1912.09729): however
    much likelier it has become, it pulls no harder.

    Returns: (the weighted sum, how many sampled tokens the clip held back).
    """
    return _clipped(bounded_exp(change(log_probs, batch)), batch, weights, config)


def sequence_policy_loss(
    log_probs: Float[Array, "B S"], batch: Batch, weights: Float[Array, "B S"], config: RLConfig
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """GSPO (arXiv 2507.18071): the same clip on one ratio per sequence.

        w = exp(mean over the sequence's sampled tokens of log_probs - batch.log_probs)

    With the weights of the "sequence" mean its sum is the paper's; of an episode of several
    sequences each has its own ratio, and together they weigh as one. The bounds are of another size
    than a token's: the paper has 3e-4 and 4e-4.
    """
    return _clipped(sequence_ratio(log_probs, batch), batch, weights, config)


def simple_policy_loss(
    log_probs: Float[Array, "B S"], batch: Batch, weights: Float[Array, "B S"], config: RLConfig
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Simple Policy Optimization (arXiv 2401.16025): a squared penalty instead of the clip.

        sum over sampled tokens of -(w A - |A| (w - 1)^2 / (2 bound)),
        w = exp(log_probs - batch.log_probs), bound = clip_high

    Each token's best ratio is 1 + sign(A) bound, and beyond it the gradient points back.

    Returns: (the weighted sum, how many sampled tokens are beyond that ratio).
    """
    ratio, bound = bounded_exp(change(log_probs, batch)), config.clip_high
    advantages = batch.advantages
    gain = ratio * advantages - jnp.abs(advantages) * (ratio - 1) ** 2 / (2 * bound)
    beyond = jnp.sign(advantages) * (ratio - 1) > bound
    return -jnp.sum(weights * gain), jnp.sum(batch.sampled * beyond)


# What `rl.loss` chooses from; a loss of one's own (docs/extending.md) has the same arguments.
POLICY_LOSSES: dict[str, PolicyLoss] = {
    "clip": clipped_policy_loss, "spo": simple_policy_loss, "gspo": sequence_policy_loss,
}


def change(log_probs: Array, batch: Batch) -> Array:
    """log_probs - batch.log_probs; 0 where not sampled, whatever stands there."""
    return jnp.where(batch.sampled > 0, log_probs - batch.log_probs, 0.0)


def bounded_exp(x: Array) -> Array:
    """exp(x), x held within ±MAX_CHANGE; beyond it the gradient is 0."""
    return jnp.exp(jnp.clip(x, -MAX_CHANGE, MAX_CHANGE))


def sequence_ratio(log_probs: Array, batch: Batch) -> Array:
    """GSPO's, at every position of a sequence."""
    length = jnp.maximum(sequence_sums(batch.sampled, batch.segments), 1.0)
    return bounded_exp(sequence_sums(change(log_probs, batch), batch.segments) / length)


def _clipped(
    ratio: Array, batch: Batch, weights: Array, config: RLConfig
) -> tuple[Array, Array]:
    plain = ratio * batch.advantages
    clipped = jnp.clip(ratio, 1 - config.clip_low, 1 + config.clip_high) * batch.advantages
    gain, held = jnp.minimum(plain, clipped), clipped < plain
    if config.dual_clip:
        least = config.dual_clip * batch.advantages
        below = (batch.advantages < 0) & (gain < least)
        gain, held = jnp.where(below, least, gain), held | below
    return -jnp.sum(weights * gain), jnp.sum(batch.sampled * held)


def value_loss(
    values: Float[Array, "B S"],
    old_values: Float[Array, "B S"],
    returns: Float[Array, "B S"],
    mask: Float[Array, "B S"],
    clip: float,
    weights: Float[Array, "B S"] | None = None,
) -> Float[Array, ""]:
    """Weighted sum over masked tokens of max((V - R)^2, (V' - R)^2) / 2.

    V' is V held within `clip` of what it was at the rollout; 0: V itself. Source: the value
    clipping that goes with PPO since its first implementation (arXiv 2006.05990, section 3.1).
    """
    values = jnp.where(mask > 0, values, 0.0)
    error = (values - returns) ** 2
    if clip:
        held = old_values + jnp.clip(values - old_values, -clip, clip)
        error = jnp.maximum(error, (held - returns) ** 2)
    return 0.5 * jnp.sum((mask if weights is None else weights) * error)


def kl_terms(
    log_probs: Float[Array, "B S"],
    other: Float[Array, "B S"],
    mask: Float[Array, "B S"],
    estimator: str,
) -> Float[Array, "B S"]:
    """Per masked token an estimate of KL(policy || other), with d = other - log_probs.

        k1: -d      k2: d^2 / 2      k3: exp(d) - d - 1

    With tokens drawn from `log_probs` k1 and k3 have the divergence as their mean, k3 with low
    variance and never negative; k2 has little bias where the two are close, and its gradient is
    the divergence's (Schulman, "Approximating KL divergence", 2020). In k3 d counts as MAX_CHANGE
    at most; far below 0, where nothing overflows, it stays as it is and keeps its pull.
    """
    d = jnp.where(mask > 0, other - log_probs, 0.0)
    if estimator == "k1":
        return -d
    if estimator == "k2":
        return d**2 / 2
    d = jnp.minimum(d, MAX_CHANGE)
    return bounded_exp(d) - d - 1


def kl_k3(
    log_probs: Float[Array, "B S"], other: Float[Array, "B S"], mask: Float[Array, "B S"]
) -> Float[Array, ""]:
    """The sum over masked tokens of the k3 estimate; see `kl_terms`."""
    return jnp.sum(mask * kl_terms(log_probs, other, mask, "k3"))
