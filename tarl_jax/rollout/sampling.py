"""Drawing tokens on the device."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax
from jaxtyping import Array, Bool, Float, Int

_BLOCK = 128  # entries of the vocabulary that are drawn from together


@struct.dataclass
class Truncation:
    """Which tokens may be drawn, after the temperature; the fields cut one after the other.

    Each is one number for all rows, or an array [B].

    top_k: only the k likeliest (ties with the last of them stay); 0: all.
    top_p: of what is left, made to sum to 1, the fewest likeliest that sum to at least p
      (arXiv 1904.09751); 1: all.
    min_p: only those at least min_p times as likely as the likeliest (arXiv 2407.01082); 0: all.
    """

    top_k: int | Array = 0
    top_p: float | Array = 1.0
    min_p: float | Array = 0.0


EVERYTHING = Truncation()


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How one row's tokens are drawn: temperature (0: greedy), and the numbers of `Truncation`."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0


def sample(
    scores: Float[Array, "B V"],
    keys: jax.Array,
    positions: Int[Array, " B"],
    temperature: Float[Array, "*B"] | float,
    truncation: Truncation = EVERYTHING,
    allowed: Bool[Array, "B V"] | None = None,
) -> tuple[Int[Array, " B"], Float[Array, " B"], Float[Array, " B"]]:
    """One token per row from softmax(scores / temperature), cut off as `truncation` says.

    At temperature 0 it is the likeliest of what may be drawn; the first of equals.

    The cumulative distribution is inverted in two stages, first over blocks of the vocabulary, then
    within one: two uniform numbers a row, where Gumbel noise would take V. The two are of 23 bits
    each; sums run over a block or over the blocks, so rounding does not grow with V.

    Args:
      keys: one PRNG key per row.
      positions: folded into the row's key, so that a draw depends on nothing else.
      temperature: at least 0; one for all rows, or one per row.
      allowed: what may be drawn, before anything is cut off; None: all.
    Returns: the tokens, their log-probabilities in the whole distribution (at temperature 0: in
      that of temperature 1), and in the one that they were drawn from.
    """
    rows, vocab = scores.shape
    heat = jnp.broadcast_to(jnp.asarray(temperature, scores.dtype), (rows,))[:, None]
    greedy = heat == 0
    log_probs = jax.nn.log_softmax(scores / jnp.where(greedy, 1, heat), axis=-1)
    drawn = log_probs if allowed is None else _renormalised(log_probs, allowed)
    drawn = truncate(drawn, truncation)
    # What has a single choice is drawn with certainty.
    likeliest = jnp.arange(vocab) == jnp.argmax(drawn, axis=-1)[:, None]
    drawn = jnp.where(greedy, jnp.where(likeliest, 0.0, -jnp.inf), drawn)
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
    """The log-probabilities of what is left, -inf elsewhere.

    One program for all truncations. The vocabulary is not sorted, which takes an accelerator's
    compiler a minute: the bounds are found bit by bit.
    """
    rows = log_probs.shape[0]

    def per_row(value: float | Array, dtype: jnp.dtype) -> Array:
        return jnp.broadcast_to(jnp.asarray(value, dtype), (rows,))[:, None]

    top_k = per_row(truncation.top_k, jnp.int32)
    top_p = per_row(truncation.top_p, log_probs.dtype)
    min_p = per_row(truncation.min_p, log_probs.dtype)

    def cut(whole: Array) -> Array:
        ranks = _ranks(whole)
        least = _highest(lambda bound: jnp.sum(ranks >= bound, -1, keepdims=True) >= top_k, rows)
        kept = (top_k == 0) | (ranks >= least)
        log_probs = _renormalised(whole, kept)
        mass = jnp.exp(log_probs)

        def more_is_likelier(bound: Array) -> Array:
            above = jnp.sum(jnp.where(ranks > bound, mass, 0.0), -1, keepdims=True)
            return above >= top_p

        kept &= (top_p >= 1) | (ranks > _highest(more_is_likelier, rows))
        log_probs = _renormalised(log_probs, kept)
        least = log_probs.max(axis=-1, keepdims=True) + jnp.log(min_p)
        # To the bit, so that what a row draws does not hang on its neighbours.
        return jnp.where(asked, _renormalised(log_probs, log_probs >= least), whole)

    asked = (top_k > 0) | (top_p < 1) | (min_p > 0)
    return lax.cond(jnp.any(asked), cut, lambda same: same, log_probs)


def _ranks(x: Float[Array, "B V"]) -> Array:
    """uint32 numbers in the same order."""
    bits = lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32)
    return jnp.where(bits >> 31 == 1, ~bits, bits | jnp.uint32(1 << 31))


def _highest(holds: Callable[[Array], Array], rows: int) -> Array:
    """The highest uint32 [rows, 1] that `holds`, which holds for all up to some one; else 0."""

    def step(place: Array, bound: Array) -> Array:
        higher = bound | (jnp.uint32(1) << (31 - place).astype(jnp.uint32))
        return jnp.where(holds(higher), higher, bound)

    return lax.fori_loop(0, 32, step, jnp.zeros((rows, 1), jnp.uint32))


def _renormalised(log_probs: Array, kept: Array) -> Array:
    return jax.nn.log_softmax(jnp.where(kept, log_probs, -jnp.inf), axis=-1)


def _invert(mass: Float[Array, "B n"], uniform: Float[Array, "B 1"]) -> Int[Array, " B"]:
    """An index per row with probability in proportion to `mass`; never one of no mass."""
    cumulative = jnp.cumsum(mass, axis=-1)
    # A uniform number is below 1 by more than the last sum's rounding: one entry always exceeds.
    beyond = (cumulative > uniform * cumulative[:, -1:]) & (mass > 0)
    return jnp.argmax(beyond, axis=-1)
