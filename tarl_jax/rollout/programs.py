"""The engine's device programs: feed forced tokens, sample, move caches. All shapes are static."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax
from jaxtyping import Array, Float

from tarl_jax.config import ModelConfig
from tarl_jax.models import decoder
from tarl_jax.models.cache import Cache, length_of_cache, rows_of
from tarl_jax.rollout.grammar import Grammar, advance, allowed
from tarl_jax.rollout.sampling import Truncation, sample


@struct.dataclass
class EngineState:
    """What the device keeps between ticks.

    Attributes:
      cache: keys and values of everything fed so far.
      lengths: int32 [B]; tokens of each row in the cache.
      last: int32 [B]; each row's newest token, which is not in the cache yet.
      seeds: uint32 [B]; of each row's episode.
      dropped: int32 [B]; tokens that have left each row's context. A token is drawn with the key
        (seed, its position + dropped), so that no key is used twice.
      syntax: int32 [B]; where in the grammar each row's turn is.
    """

    cache: Cache
    lengths: jax.Array
    last: jax.Array
    seeds: jax.Array
    dropped: jax.Array
    syntax: jax.Array


@struct.dataclass
class Chunk:
    """Forced tokens for some slots.

    Attributes:
      slots: int32 [B]; counted within the shard that the place is in; one beyond it marks a filler.
      tokens: int32 [B, C].
      start: int32 [B]; where they go in the cache.
      used: int32 [B]; how many of them count.
      last: int32 [B]; the slot's newest token, which is not fed.
      seeds: uint32 [B].
      dropped, syntax: int32 [B].
      spoken: bool [B, C]; tokens in whose place `inputs`, float32 [B, C, D], are read. None: no
        sound.
    """

    slots: jax.Array
    tokens: jax.Array
    start: jax.Array
    used: jax.Array
    last: jax.Array
    seeds: jax.Array
    dropped: jax.Array
    syntax: jax.Array
    spoken: jax.Array | None = None
    inputs: jax.Array | None = None


def extend(
    model: ModelConfig, params: decoder.Params, state: EngineState, chunk: Chunk
) -> EngineState:
    """Feeds a chunk: the tokens enter the cache, and the rows are as the chunk says."""
    inputs = None
    if chunk.spoken is not None:
        assert chunk.inputs is not None
        own = params["embed"][chunk.tokens]
        inputs = jnp.where(chunk.spoken[..., None], chunk.inputs.astype(own.dtype), own)
    _, cache = decoder.cached_step(
        params, model, state.cache, chunk.tokens, chunk.start, chunk.slots, inputs,
        jnp.max(chunk.start + chunk.used) - 1,
    )

    def put(values: jax.Array, new: jax.Array) -> jax.Array:
        return values.at[chunk.slots].set(new, mode="drop")

    return EngineState(
        cache=cache,
        lengths=put(state.lengths, chunk.start + chunk.used),
        last=put(state.last, chunk.last),
        seeds=put(state.seeds, chunk.seeds),
        dropped=put(state.dropped, chunk.dropped),
        syntax=put(state.syntax, chunk.syntax),
    )


@struct.dataclass
class Written:
    """What a call of `decode` sampled.

    Attributes:
      tokens: int32 [B, T]; from the left.
      log_probs: float32 [B, T]; of softmax(scores / temperature).
      drawn_log_probs: float32 [B, T]; of the distribution that was drawn from, the same where
        nothing was cut off.
      counts: int32 [B]; tokens of each row.
      ended: bool [B]; whether the row's turn is over.
      syntax: int32 [B]; where in the grammar it is then.
    """

    tokens: jax.Array
    log_probs: jax.Array
    drawn_log_probs: jax.Array
    counts: jax.Array
    ended: jax.Array
    syntax: jax.Array


def decode(
    model: ModelConfig,
    stop_ids: tuple[int, ...],
    ids: int,
    limit: int,
    params: decoder.Params,
    grammar: Grammar | None,
    state: EngineState,
    room: jax.Array,
    patience: jax.Array,
    temperature: jax.Array,
    truncation: Truncation,
) -> tuple[EngineState, Written]:
    """Samples up to `room` [B] tokens per row, until at most `patience` rows still write.

    Temperature [B] and truncation are each row's own.

    With a grammar, only what it allows; and only the first `ids` tokens, if that is not 0: those
    beyond are rows that pad the embedding.
    """

    def going(carry):
        step, _, writing, _ = carry
        running = jnp.sum(writing)
        return (step < limit) & (running > 0) & ((running > patience) | (step == 0))

    def step_once(carry):
        step, state, writing, out = carry
        hidden, cache = decoder.cached_step(
            params, model, state.cache, state.last[:, None], state.lengths,
            most=jnp.max(jnp.where(writing, state.lengths, 0)),
        )
        drawn = draw(
            params, grammar, ids, hidden[:, 0], state.lengths, state.seeds, state.dropped,
            out.syntax, temperature, truncation,
        )
        out, last, still = record(out, drawn, writing, state.last, stop_ids, room)
        state = state.replace(cache=cache, lengths=state.lengths + writing, last=last)
        return step + 1, state, still, out

    begin = (0, state, room > 0, nothing_written(room.shape[0], limit, state.syntax))
    _, state, writing, out = lax.while_loop(going, step_once, begin)
    return (dataclasses.replace(state, syntax=out.syntax),
            dataclasses.replace(out, ended=~writing))


@struct.dataclass
class Drawn:
    """A token of each row: its id, its log-probability, that of the distribution that it was drawn
    from, and where in the grammar it leads; all [B]."""

    token: jax.Array
    log_prob: jax.Array
    drawn_log_prob: jax.Array
    syntax: jax.Array


def draw(
    params: decoder.Params,
    grammar: Grammar | None,
    ids: int,
    hidden: Float[Array, "B D"],
    positions: jax.Array,
    seeds: jax.Array,
    dropped: jax.Array,
    syntax: jax.Array,
    temperature: jax.Array,
    truncation: Truncation,
) -> Drawn:
    """Draws a token behind each row's newest; all arrays have one entry a row.

    ids: how many tokens of the vocabulary may be drawn; 0: all.
    """
    keys = jax.vmap(jax.random.key)(seeds)
    scores = decoder.logits(params, hidden)
    mask = None if grammar is None else allowed(grammar, syntax)
    if 0 < ids < scores.shape[1]:
        within = jnp.broadcast_to(jnp.arange(scores.shape[1]) < ids, scores.shape)
        mask = within if mask is None else mask & within
    found = sample(scores, keys, positions + dropped, temperature, truncation, mask)
    return Drawn(*found, syntax if grammar is None else advance(grammar, syntax, found[0]))


def nothing_written(rows: int, limit: int, syntax: jax.Array) -> Written:
    """Room for `limit` tokens of each row."""
    return Written(
        tokens=jnp.zeros((rows, limit), jnp.int32),
        log_probs=jnp.zeros((rows, limit), jnp.float32),
        drawn_log_probs=jnp.zeros((rows, limit), jnp.float32),
        counts=jnp.zeros(rows, jnp.int32),
        ended=jnp.zeros(rows, jnp.bool),
        syntax=syntax,
    )


def record(
    out: Written, drawn: Drawn, writing: jax.Array, last: jax.Array, stop_ids: tuple[int, ...],
    room: jax.Array,
) -> tuple[Written, jax.Array, jax.Array]:
    """Puts what was drawn behind what is written, of the rows that are `writing`.

    Returns: what is written, each row's newest token, and which rows go on.
    """
    rows = jnp.arange(out.tokens.shape[0])
    column = jnp.where(writing, out.counts, out.tokens.shape[1])

    def put(values: jax.Array, new: jax.Array) -> jax.Array:
        return values.at[rows, column].set(new, mode="drop")

    out = dataclasses.replace(
        out,
        tokens=put(out.tokens, drawn.token),
        log_probs=put(out.log_probs, drawn.log_prob),
        drawn_log_probs=put(out.drawn_log_probs, drawn.drawn_log_prob),
        counts=out.counts + writing,
        syntax=jnp.where(writing, drawn.syntax, out.syntax),
    )
    still = writing & (out.counts < room)
    for stop_id in stop_ids:
        still = still & (drawn.token != stop_id)
    return out, jnp.where(writing, drawn.token, last), still


def keep(state: EngineState, slots: jax.Array) -> EngineState:
    """The state of these slots [B] alone."""
    return EngineState(
        cache=rows_of(state.cache, slots),
        lengths=state.lengths[slots],
        last=state.last[slots],
        seeds=state.seeds[slots],
        dropped=state.dropped[slots],
        syntax=state.syntax[slots],
    )


def move(
    cache: Cache, store: Cache, within: jax.Array, out: jax.Array, into: jax.Array
) -> tuple[Cache, Cache]:
    """Both, with rows copied: within the cache, out of the store, into the store.

    Each is int32 [M, 2] of pairs (from, to), where `to` beyond the target marks a filler. What is
    copied is what was there before; no row of the cache is both taken from and put to.
    """

    def taken(source: Cache, pairs: jax.Array) -> Cache:
        return jax.tree.map(lambda x: x.at[pairs[:, 0]].get(mode="clip"), source)

    def put(target: Cache, rows: Cache, pairs: jax.Array) -> Cache:
        return jax.tree.map(lambda x, y: x.at[pairs[:, 1]].set(y, mode="drop"), target, rows)

    def read(_: jax.Array, held: tuple[Any, Any]) -> tuple[Any, Any]:
        _, (cache, store) = held
        return (taken(cache, within), taken(store, out), taken(cache, into)), (cache, store)

    # A loop of one round: both come out of it, so that XLA knows that all is read by then, and puts
    # rows in place. Else it copies the whole of both.
    empty = jax.tree.map(lambda x: jnp.zeros((len(within), *x.shape[1:]), x.dtype), cache)
    once = (into[0, 0] >= 0).astype(jnp.int32)  # 1, which XLA does not know
    (moved, back, kept), (cache, store) = lax.fori_loop(
        0, once, read, ((empty, empty, empty), (cache, store))
    )
    return put(put(cache, moved, within), back, out), put(store, kept, into)


def length_of(state: EngineState) -> int:
    """Positions that the state's cache has room for."""
    return length_of_cache(state.cache)


def batch_of(state: EngineState) -> int:
    """Rows of the batch."""
    return state.lengths.shape[0]
