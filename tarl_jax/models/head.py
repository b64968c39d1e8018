"""Log-probabilities of sampled tokens without scores for every position.

The head of a large vocabulary dominates the memory of an update: [B, S, V] in float32 is 40 GB for
B = 2, S = 32,768 and V = 151,936. Here the positions that count are moved to the front of their
rows, and the head runs over a few columns of them at a time, in the backward pass once more. Memory
is that of one chunk, and time is that of the longest row of counted tokens.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from tarl_jax.models.decoder import Params


def sampled_log_probs(
    params: Params,
    hidden: Float[Array, "B S D"],
    tokens: Int[Array, "B S"],
    sampled: Float[Array, "B S"],
    temperature: float,
    chunk_tokens: int = 1024,
) -> tuple[Float[Array, "B S"], Float[Array, "B S"]]:
    """Log-probability of each sampled token at `temperature`, and the entropy in nats.

    Entry s is about the token at s (predicted at s - 1); 0 where `sampled` is 0, and at s = 0.

    Args:
      hidden: final-norm outputs, of which position s predicts the token at s + 1.
      chunk_tokens: positions that the head runs over at a time.
    """
    rows, length = tokens.shape
    columns = min(max(chunk_tokens // rows, 1), length)
    padded = -(-(length - 1) // columns) * columns
    counted = sampled[:, 1:] > 0
    counts = counted.sum(axis=1)
    order = jnp.argsort(~counted, axis=1, stable=True)
    place = jnp.argsort(order, axis=1)

    def front(x: Array) -> Array:
        moved = jnp.take_along_axis(x, order, axis=1)
        return jnp.pad(moved, ((0, 0), (0, padded - length + 1)))

    head = params["head"] if "head" in params else params["embed"].T
    moved = _front(hidden[:, :-1], order, place)
    moved = jnp.pad(moved, ((0, 0), (0, padded - length + 1), (0, 0)))
    values = _chunked(columns, temperature, moved, head, front(tokens[:, 1:]), counts.max())

    def back(x: Array) -> Array:
        x = jnp.where(counted, jnp.take_along_axis(x, place, axis=1), 0.0)
        return jnp.pad(x, ((0, 0), (1, 0)))

    return back(values[0]), back(values[1])


@jax.custom_vjp
def _front(hidden: Array, order: Array, place: Array) -> Array:
    """hidden[b, order[b]]; a permutation, so that its gradient is a gather too."""
    return jnp.take_along_axis(hidden, order[..., None], axis=1)


def _front_forward(hidden, order, place):
    return _front(hidden, order, place), place


def _front_backward(place, slope):
    return jnp.take_along_axis(slope, place[..., None], axis=1), None, None


_front.defvjp(_front_forward, _front_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _chunked(columns, temperature, hidden, head, targets, longest):
    """(log-probs, entropies), both [B, M], of the first `longest` columns; 0 beyond."""
    return _chunked_forward(columns, temperature, hidden, head, targets, longest)[0]


def _chunked_forward(columns, temperature, hidden, head, targets, longest):
    def step(i, out):
        part = functools.partial(_columns, i * columns, columns)
        log_p = _log_softmax(part(hidden), head, temperature)
        chosen = jnp.take_along_axis(log_p, part(targets)[..., None], axis=-1)[..., 0]
        entropy = -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)
        return tuple(
            lax.dynamic_update_slice_in_dim(whole, new, i * columns, axis=1)
            for whole, new in zip(out, (chosen, entropy), strict=True)
        )

    zeros = jnp.zeros(targets.shape, jnp.float32)
    out = lax.fori_loop(0, -(-longest // columns), step, (zeros, zeros))
    return out, (hidden, head, targets, longest, out[1])


def _chunked_backward(columns, temperature, kept, slopes):
    hidden, head, targets, longest, entropies = kept

    def step(i, grads):
        to_hidden, to_head = grads
        part = functools.partial(_columns, i * columns, columns)
        h = part(hidden)
        log_p = _log_softmax(h, head, temperature)
        p = jnp.exp(log_p)
        chosen = jax.nn.one_hot(part(targets), head.shape[1])
        of_log_prob, of_entropy = (part(slope)[..., None] for slope in slopes)
        scores = of_log_prob * (chosen - p) - of_entropy * p * (log_p + part(entropies)[..., None])
        scores = (scores / temperature).astype(h.dtype)
        to_hidden = lax.dynamic_update_slice_in_dim(
            to_hidden, (scores @ head.T).astype(h.dtype), i * columns, axis=1
        )
        slope = jnp.einsum("BCD,BCV->DV", h, scores, preferred_element_type=jnp.float32)
        return to_hidden, to_head + slope

    start = jnp.zeros_like(hidden), jnp.zeros(head.shape, jnp.float32)
    to_hidden, to_head = lax.fori_loop(0, -(-longest // columns), step, start)
    return to_hidden, to_head.astype(head.dtype), None, None


_chunked.defvjp(_chunked_forward, _chunked_backward)


def _columns(start, count, x):
    return lax.dynamic_slice_in_dim(x, start, count, axis=1)


def _log_softmax(hidden, head, temperature):
    scores = jnp.einsum("BCD,DV->BCV", hidden, head, preferred_element_type=jnp.float32)
    return jax.nn.log_softmax(scores / temperature, axis=-1)
