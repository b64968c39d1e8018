"""Drawing tokens on the device."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

_BLOCK = 128  # entries of the vocabulary that are drawn from together


def sample(
    scores: Float[Array, "B V"],
    keys: jax.Array,
    positions: Int[Array, " B"],
    temperature: Float[Array, ""],
) -> tuple[Int[Array, " B"], Float[Array, " B"]]:
    """One token per row from softmax(scores / temperature), and its log-probability.

    The cumulative distribution is inverted in two stages, first over blocks of the vocabulary, then
    within one: two uniform numbers a row, where Gumbel noise would take V. The two are of 23 bits
    each; sums run over a block or over the blocks, so rounding does not grow with V.

    Args:
      keys: one PRNG key per row.
      positions: folded into the row's key, so that a draw depends on nothing else.
    """
    log_probs = jax.nn.log_softmax(scores / temperature, axis=-1)
    rows, vocab = scores.shape
    blocks = -(-vocab // _BLOCK)
    padded = jnp.pad(jnp.exp(log_probs), ((0, 0), (0, blocks * _BLOCK - vocab)))
    mass = padded.reshape(rows, blocks, _BLOCK)
    uniform = jax.vmap(
        lambda key, position: jax.random.uniform(jax.random.fold_in(key, position), (2,))
    )(keys, positions)
    block = _invert(mass.sum(axis=-1), uniform[:, :1])
    inside = jnp.take_along_axis(mass, block[:, None, None], axis=1)[:, 0]
    token = block * _BLOCK + _invert(inside, uniform[:, 1:])
    return token, jnp.take_along_axis(log_probs, token[:, None], axis=-1)[:, 0]


def _invert(mass: Float[Array, "B n"], uniform: Float[Array, "B 1"]) -> Int[Array, " B"]:
    """An index per row with probability in proportion to `mass`; never one of no mass."""
    cumulative = jnp.cumsum(mass, axis=-1)
    # A uniform number is below 1 by more than the last sum's rounding: one entry always exceeds.
    beyond = (cumulative > uniform * cumulative[:, -1:]) & (mass > 0)
    return jnp.argmax(beyond, axis=-1)
