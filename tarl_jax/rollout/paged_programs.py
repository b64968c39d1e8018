"""What runs on the device where the cache is in pages: one program that feeds, one that writes.

Nothing but the pool stays on the device. Rows come with each call, as sequences of a shard, one
behind the other; what they are is known on the host.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax

from tarl_jax.config import ModelConfig
from tarl_jax.models import decoder
from tarl_jax.models.pages import Flat, Pool
from tarl_jax.rollout.grammar import Grammar, advance, allowed
from tarl_jax.rollout.programs import Written
from tarl_jax.rollout.sampling import Truncation, sample


@struct.dataclass
class Writers:
    """The rows behind the sequences of a call.

    Attributes:
      seeds: uint32 [Q]; of the episodes.
      dropped: int32 [Q]; tokens that have left the context. A token is drawn with the key (seed,
        its position + dropped), so that no key is used twice.
      syntax: int32 [Q]; where in the grammar the turn is.
      room: int32 [Q]; tokens that may be written now; 0: none.
      temperature: float32 [Q]; how each row's tokens are drawn, as the next three.
      top_k: int32 [Q].
      top_p, min_p: float32 [Q].
    """

    seeds: jax.Array
    dropped: jax.Array
    syntax: jax.Array
    room: jax.Array
    temperature: jax.Array
    top_k: jax.Array
    top_p: jax.Array
    min_p: jax.Array


@struct.dataclass
class Sound:
    """Inputs that stand in place of tokens: `inputs`, float32 [N, D], where `spoken`, bool [N]."""

    spoken: jax.Array
    inputs: jax.Array


def mixed(
    model: ModelConfig,
    ids: int,
    params: decoder.Params,
    grammar: Grammar | None,
    pool: Pool,
    flat: Flat,
    writers: Writers,
    sound: Sound | None = None,
) -> tuple[Pool, Written]:
    """Feeds tokens; a sequence with room writes one behind its last.

    ids: how many tokens of the vocabulary may be drawn; 0: all.
    """
    embeddings = None
    if sound is not None:
        own = params["embed"][flat.tokens]
        embeddings = jnp.where(sound.spoken[:, None], sound.inputs.astype(own.dtype), own)
    hidden, pool = decoder.paged_step(params, model, pool, flat, embeddings=embeddings)
    shards, rows = flat.count.shape[0], flat.lengths.shape[0]
    ends = flat.begins.reshape(shards, -1)[:, 1:] - 1
    firsts = jnp.arange(shards)[:, None] * (hidden.shape[0] // shards)
    last = hidden[(jnp.maximum(ends, 0) + firsts).reshape(rows)]
    token, log_prob, drawn, syntax = _draw(
        params, grammar, ids, last, flat.lengths - 1, writers, writers.syntax
    )
    writes = writers.room > 0
    return pool, Written(
        tokens=token[:, None], log_probs=log_prob[:, None], drawn_log_probs=drawn[:, None],
        counts=writes.astype(jnp.int32), ended=writes,
        syntax=jnp.where(writes, syntax, writers.syntax),
    )


def _draw(
    params: decoder.Params,
    grammar: Grammar | None,
    ids: int,
    hidden: jax.Array,
    positions: jax.Array,
    writers: Writers,
    syntax: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """(token, log-probability, the one that was drawn with, where in the grammar it leads)."""
    keys = jax.vmap(jax.random.key)(writers.seeds)
    scores = decoder.logits(params, hidden)
    mask = None if grammar is None else allowed(grammar, syntax)
    if 0 < ids < scores.shape[1]:
        within = jnp.broadcast_to(jnp.arange(scores.shape[1]) < ids, scores.shape)
        mask = within if mask is None else mask & within
    token, log_prob, drawn = sample(
        scores, keys, positions + writers.dropped, writers.temperature,
        Truncation(writers.top_k, writers.top_p, writers.min_p), mask,
    )
    after = syntax if grammar is None else advance(grammar, syntax, token)
    return token, log_prob, drawn, after


def decode(
    model: ModelConfig,
    stop_ids: tuple[int, ...],
    ids: int,
    limit: int,
    page: int,
    params: decoder.Params,
    grammar: Grammar | None,
    pool: Pool,
    flat: Flat,
    writers: Writers,
    patience: jax.Array,
) -> tuple[Pool, Written]:
    """Writes up to `room` tokens per row, until at most `patience` rows still write.

    ids: how many tokens of the vocabulary may be drawn; 0: all.
    limit: the most tokens of one call; `room` is no more.
    page: tokens of a page.
    flat: each row's newest token and its place; `pages` is not read.
    """
    rows = jnp.arange(flat.tokens.shape[0])

    def going(carry):
        step, _, _, _, writing, _ = carry
        running = jnp.sum(writing)
        return (step < limit) & (running > 0) & ((running > patience) | (step == 0))

    def step_once(carry):
        step, pool, last, positions, writing, out = carry
        pages = jnp.take_along_axis(flat.tables, (positions // page)[:, None], axis=1)[:, 0]
        now = dataclasses.replace(
            flat, tokens=last, positions=positions, pages=jnp.where(writing, pages, 0),
            lengths=jnp.where(writing, positions + 1, 1),
        )
        hidden, pool = decoder.paged_step(params, model, pool, now, single=True)
        token, log_prob, drawn, syntax = _draw(
            params, grammar, ids, hidden, positions, writers, out.syntax
        )
        column = jnp.where(writing, out.counts, limit)

        def put(values: jax.Array, new: jax.Array) -> jax.Array:
            return values.at[rows, column].set(new, mode="drop")

        out = out.replace(
            tokens=put(out.tokens, token),
            log_probs=put(out.log_probs, log_prob),
            drawn_log_probs=put(out.drawn_log_probs, drawn),
            counts=out.counts + writing,
            syntax=jnp.where(writing, syntax, out.syntax),
        )
        last = jnp.where(writing, token, last)
        positions = positions + writing
        for stop_id in stop_ids:
            writing = writing & (token != stop_id)
        writing = writing & (out.counts < writers.room)
        return step + 1, pool, last, positions, writing, out

    shape = (flat.tokens.shape[0], limit)
    out = Written(
        tokens=jnp.zeros(shape, jnp.int32),
        log_probs=jnp.zeros(shape, jnp.float32),
        drawn_log_probs=jnp.zeros(shape, jnp.float32),
        counts=jnp.zeros(shape[0], jnp.int32),
        ended=jnp.zeros(shape[0], jnp.bool),
        syntax=writers.syntax,
    )
    begin = (0, pool, flat.tokens, flat.positions, writers.room > 0, out)
    _, pool, _, _, writing, out = lax.while_loop(going, step_once, begin)
    return pool, out.replace(ended=~writing)
