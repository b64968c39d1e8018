"""Drawing tokens on the device."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

_BLOCK = 128  # entries of the vocabulary that are drawn from together


@dataclasses.dataclass(frozen=True)
class Truncation:
    """Which tokens may be drawn, after the temperature; the fields cut one after the other.

    top_k: only the k likeliest (ties with the last of them stay); 0: all.
    top_p: of what is left, made to sum to 1, the fewest likeliest that sum to at least p
      (arXiv 1904.09751); 1: all.
    min_p: only those at least min_p times as likely as the likeliest (arXiv 2407.01082); 0: all.
    """

    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0

    def __bool__(self) -> bool:
        return self != Truncation()


def sample(
    scores: Float[Array, "B V"],
    keys: jax.Array,
    positions: Int[Array, " B"],
    temperature: Float[Array, ""],
    truncation: Truncation = Truncation(),
    allowed: Bool[Array, "B V"] | None = None,
) -> tuple[Int[Array, " B"], Float[Array, " B"], Float[Array, " B"]]:
    """One token per row from softmax(scores / temperature), cut off as `truncation` says.

    The cumulative distribution is inverted in two stages, first over blocks of the vocabulary, then
    within one: two uniform numbers a row, where Gumbel noise would take V. The two are of 23 bits
    each; sums run over a block or over the blocks, so rounding does not grow with V.

    Args:
      keys: one PRNG key per row.
      positions: folded into the row's key, so that a draw depends on nothing else.
      allowed: what may be drawn, before anything is cut off; None: all.
    Returns: the tokens, their log-probabilities in the whole distribution, and in the one that
      they were drawn from.
    """
    log_probs = jax.nn.log_softmax(scores / temperature, axis=-1)
    drawn = log_probs if allowed is None else _renormalised(log_probs, allowed)
    drawn = truncate(drawn, truncation) if truncation else drawn
    rows, vocab = scores.shape
    blocks = -(-vocab // _BLOCK)
    padded = jnp.pad(jnp.exp(drawn), ((0, 0), (0, blocks * _BLOCK - vocab)))
    mass = padded.reshape(rows, blocks, _BLOCK)
    uniform = jax.vmap(
        lambda key, position: jax.random.uniform(jax.random.fold_in(key, position), (2,))
    )(keys, positions)
    block = _invert(mass.sum(axis=-1), uniform[:, :1])
    inside = jnp.take_along_axis(mass, block[:, None, None], axis=1)[:, 0]
    token = block * _BLOCK + _invert(inside, uniform[:, 1:])
    log_prob, drawn_log_prob = (
        jnp.take_along_axis(x, token[:, None], axis=-1)[:, 0] for x in (log_probs, drawn)
    )
    return token, log_prob, drawn_log_prob


def truncate(log_probs: Float[Array, "B V"], truncation: Truncation) -> Float[Array, "B V"]:
    """The log-probabilities of what is left, -inf elsewhere."""
    if 0 < truncation.top_k < log_probs.shape[-1]:
        least = jax.lax.top_k(log_probs, truncation.top_k)[0][:, -1:]
        log_probs = _renormalised(log_probs, log_probs >= least)
    if truncation.top_p < 1:
        falling = -jnp.sort(-log_probs, axis=-1)
        before = jnp.cumsum(jnp.exp(falling), axis=-1) - jnp.exp(falling)
        least = jnp.min(jnp.where(before < truncation.top_p, falling, jnp.inf), -1, keepdims=True)
        log_probs = _renormalised(log_probs, log_probs >= least)
    if truncation.min_p > 0:
        least = log_probs.max(axis=-1, keepdims=True) + jnp.log(truncation.min_p)
        log_probs = _renormalised(log_probs, log_probs >= least)
    return log_probs


def _renormalised(log_probs: Array, kept: Array) -> Array:
    return jax.nn.log_softmax(jnp.where(kept, log_probs, -jnp.inf), axis=-1)


def _invert(mass: Float[Array, "B n"], uniform: Float[Array, "B 1"]) -> Int[Array, " B"]:
    """An index per row with probability in proportion to `mass`; never one of no mass."""
    cumulative = jnp.cumsum(mass, axis=-1)
    # A uniform number is below 1 by more than the last sum's rounding: one entry always exceeds.
    beyond = (cumulative > uniform * cumulative[:, -1:]) & (mass > 0)
    return jnp.argmax(beyond, axis=-1)
