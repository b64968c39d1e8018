"""What stands on the trunk: log-probabilities of sampled tokens, and values.

The head of a large vocabulary dominates the memory of an update: [B, S, V] in float32 is 40 GB for
B = 2, S = 32,768 and V = 151,936. Here the positions that count are moved to the front of their
rows, and the head runs over a few columns of them at a time, in the backward pass once more. Memory
is that of one chunk, and time is that of the longest row of counted tokens.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from tarl_jax.models.decoder import Params, head_weight
from tarl_jax.parallel.mesh import ROW_AXES, row_shards, spec

_TENSOR = "tensor"


def sampled_log_probs(
    params: Params,
    hidden: Float[Array, "B S D"],
    tokens: Int[Array, "B S"],
    sampled: Float[Array, "B S"],
    temperature: float,
    chunk_tokens: int = 512,
) -> tuple[Float[Array, "B S"], Float[Array, "B S"]]:
    """Log-probability of each sampled token at `temperature`, and the entropy in nats.

    Entry s is about the token at s (predicted at s - 1); 0 where `sampled` is 0, and at s = 0.

    Args:
      hidden: final-norm outputs, of which position s predicts the token at s + 1.
      chunk_tokens: positions per device that the head runs over at a time.
    """
    mesh = jax.sharding.get_abstract_mesh()
    rows, length = tokens.shape
    columns = min(max(chunk_tokens * (1 if mesh.empty else row_shards(mesh)) // rows, 1), length)
    padded = -(-(length - 1) // columns) * columns
    counted = sampled[:, 1:] > 0
    order = jnp.argsort(~counted, axis=1, stable=True)
    place = jnp.argsort(order, axis=1)
    targets = jnp.take_along_axis(tokens[:, 1:], order, axis=1)
    targets = jnp.pad(targets, ((0, 0), (0, padded - length + 1)))
    moved = _front(hidden[:, :-1], order, place)
    moved = jnp.pad(moved, ((0, 0), (0, padded - length + 1), (0, 0)))
    counts = counted.sum(axis=1)
    values = _chunked(columns, temperature, moved, head_weight(params), targets, counts)

    def back(x: Array) -> Array:
        x = jnp.where(counted, jnp.take_along_axis(x, place, axis=1), 0.0)
        return jnp.pad(x, ((0, 0), (1, 0)))

    return back(values[0]), back(values[1])


def init_value_params(params: Params) -> Params:
    """A value model that starts from the policy's trunk; its head starts at zero.

    It shares no memory with the policy: both train.
    """
    trunk = {name: x for name, x in params.items() if name != "head"}
    value_head = jnp.zeros(params["final_norm"].shape, params["final_norm"].dtype)
    return {**jax.tree.map(jnp.copy, trunk), "value_head": value_head}


def values(params: Params, hidden: Float[Array, "B S D"]) -> Float[Array, "B S"]:
    """The value of the state after each position, from the value model's own trunk."""
    weight = params["value_head"].astype(hidden.dtype)
    return jnp.tensordot(hidden, weight, 1, preferred_element_type=jnp.float32)


# ---- moving the counted positions to the front ----------------------------------------------


@jax.custom_vjp
def _front(hidden: Array, order: Array, place: Array) -> Array:
    """hidden[b, order[b]]; a permutation, so that its gradient is a gather too."""
    return jnp.take_along_axis(hidden, order[..., None], axis=1)


def _front_forward(hidden: Array, order: Array, place: Array) -> tuple[Array, Array]:
    return _front(hidden, order, place), place


def _front_backward(place: Array, slope: Array) -> tuple[Array, None, None]:
    return jnp.take_along_axis(slope, place[..., None], axis=1), None, None


_front.defvjp(_front_forward, _front_backward)


# ---- the head, a few columns at a time ------------------------------------------------------


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _chunked(
    columns: int, temperature: float, hidden: Array, head: Array, targets: Array, counts: Array
) -> tuple[Array, Array]:
    """(log-probs, entropies), both [B, M], of the first `counts` columns of each row at least."""
    return _chunked_forward(columns, temperature, hidden, head, targets, counts)[0]


def _chunked_forward(
    columns: int, temperature: float, hidden: Array, head: Array, targets: Array, counts: Array
) -> tuple[tuple[Array, Array], Any]:
    def local(hidden: Array, head: Array, targets: Array, counts: Array) -> tuple[Array, ...]:
        def step(i: Array, out: tuple[Array, ...]) -> tuple[Array, ...]:
            scores = _scores(_part(hidden, i, columns), head, temperature)
            highest, total = _highest(scores), _log_sum_exp(scores)
            log_prob = _at(scores, _part(targets, i, columns)) - total
            # -sum p log p, in terms that need no second array over the vocabulary.
            mean = _over_vocabulary(jnp.exp(scores - total) * (scores - highest))
            entropy = total - highest - mean
            return tuple(
                lax.dynamic_update_slice_in_dim(whole, new[..., 0], i * columns, axis=1)
                for whole, new in zip(out, (log_prob, entropy, total), strict=True)
            )

        zeros = jnp.zeros(targets.shape, jnp.float32)
        return lax.fori_loop(0, -(-counts.max() // columns), step, (zeros, zeros, zeros))

    log_probs, entropies, totals = _on_mesh(local, ("rows", "rows", "rows"))(
        hidden, head.astype(hidden.dtype), targets, counts
    )
    return (log_probs, entropies), (hidden, head, targets, counts, entropies, totals)


def _chunked_backward(
    columns: int, temperature: float, kept: Any, slopes: tuple[Array, Array]
) -> tuple[Array, Array, None, None]:
    hidden, head, targets, counts, entropies, totals = kept

    def local(hidden, head, targets, counts, entropies, totals, of_log_prob, of_entropy):
        def step(i: Array, slopes: tuple[Array, Array]) -> tuple[Array, Array]:
            to_hidden, to_head = slopes
            part = functools.partial(_part, i=i, columns=columns)
            h = part(hidden)
            scores = _scores(h, head, temperature)
            log_p = scores - part(totals)[..., None]
            p = jnp.exp(log_p)
            slope = part(of_log_prob)[..., None] * (_one_hot(part(targets), head) - p)
            slope -= part(of_entropy)[..., None] * p * (log_p + part(entropies)[..., None])
            slope = (slope / temperature).astype(h.dtype)
            back = jnp.tensordot(slope, head, (2, 1), preferred_element_type=jnp.float32)
            back = _psum_vocabulary(back).astype(h.dtype)
            to_hidden = lax.dynamic_update_slice_in_dim(to_hidden, back, i * columns, axis=1)
            added = jnp.tensordot(h, slope, ((0, 1), (0, 1)), preferred_element_type=jnp.float32)
            return to_hidden, to_head + added

        start = jnp.zeros_like(hidden), jnp.zeros(head.shape, jnp.float32)
        to_hidden, to_head = lax.fori_loop(0, -(-counts.max() // columns), step, start)
        return to_hidden, _sum_rows(to_head)

    to_hidden, to_head = _on_mesh(local, ("rows", "head"))(
        hidden, head.astype(hidden.dtype), targets, counts, entropies, totals, *slopes
    )
    return to_hidden, to_head.astype(head.dtype), None, None


_chunked.defvjp(_chunked_forward, _chunked_backward)


def _part(x: Array, i: Array, columns: int) -> Array:
    return lax.dynamic_slice_in_dim(x, i * columns, columns, axis=1)


def _scores(hidden: Array, head: Array, temperature: float) -> Array:
    return jnp.tensordot(hidden, head, 1, preferred_element_type=jnp.float32) / temperature


# ---- the same on a mesh: rows split, vocabulary split ---------------------------------------
# The compiler would sum the head's gradient over devices once per chunk; by hand it is once.


def _on_mesh(local: Callable[..., Any], outputs: tuple[str, ...]) -> Callable[..., Any]:
    """`local` on each device's rows and part of the vocabulary: (hidden, head, rows, ...)."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return local
    rows, head = spec("rows"), PartitionSpec(None, _TENSOR)

    def run(hidden: Array, weight: Array, *others: Array) -> Any:
        return jax.shard_map(
            local, mesh=mesh, in_specs=(rows, head, *(rows for _ in others)), check_vma=False,
            out_specs=tuple({"rows": rows, "head": spec("embed", "vocab")}[o] for o in outputs),
        )(hidden, weight, *others)

    return run


def _split(axis: str) -> bool:
    """Whether this is the code of one device of several along `axis`."""
    mesh = jax.sharding.get_abstract_mesh()
    return not mesh.empty and axis in mesh.manual_axes and mesh.shape[axis] > 1


def _psum_vocabulary(x: Array) -> Array:
    return lax.psum(x, _TENSOR) if _split(_TENSOR) else x


def _over_vocabulary(x: Array) -> Array:
    """The sum over all of the vocabulary, [B, C, 1]."""
    return _psum_vocabulary(jnp.sum(x, axis=-1, keepdims=True))


def _highest(scores: Array) -> Array:
    highest = jnp.max(scores, axis=-1, keepdims=True)
    return lax.pmax(highest, _TENSOR) if _split(_TENSOR) else highest


def _log_sum_exp(scores: Array) -> Array:
    highest = _highest(scores)
    return highest + jnp.log(_over_vocabulary(jnp.exp(scores - highest)))


def _at(scores: Array, targets: Array) -> Array:
    """The targets' scores, [B, C, 1], from whichever device's part of the vocabulary has them."""
    place = (targets - _first(scores.shape[-1]))[..., None]
    here = (place >= 0) & (place < scores.shape[-1])
    found = jnp.take_along_axis(scores, jnp.where(here, place, 0), axis=-1)
    return _psum_vocabulary(jnp.where(here, found, 0.0))


def _one_hot(targets: Array, head: Array) -> Array:
    """Where in this device's part of the vocabulary the targets stand, as booleans."""
    return targets[..., None] == _first(head.shape[1]) + jnp.arange(head.shape[1])


def _first(size: int) -> int | Array:
    """The first id of this device's part of the vocabulary, of `size`."""
    return lax.axis_index(_TENSOR) * size if _split(_TENSOR) else 0


def _sum_rows(to_head: Array) -> Array:
    """The head's gradient over all rows, each device left with its part of the width."""
    if _split("data"):
        to_head = lax.psum(to_head, "data")
    if _split(ROW_AXES[1]):
        to_head = lax.psum_scatter(to_head, ROW_AXES[1], scatter_dimension=0, tiled=True)
    return to_head
