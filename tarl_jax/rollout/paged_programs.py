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
from tarl_jax.rollout.grammar import Grammar
from tarl_jax.rollout.programs import Drawn, Written, draw, nothing_written, record
from tarl_jax.rollout.sampling import Truncation


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
    drawn = _draw(params, grammar, ids, last, flat.lengths - 1, writers, writers.syntax)
    writes = writers.room > 0
    out, _, _ = record(
        nothing_written(rows, 1, writers.syntax), drawn, writes, drawn.token, (), writers.room
    )
    return pool, dataclasses.replace(out, ended=writes)


def _draw(
    params: decoder.Params,
    grammar: Grammar | None,
    ids: int,
    hidden: jax.Array,
    positions: jax.Array,
    writers: Writers,
    syntax: jax.Array,
) -> Drawn:
    return draw(
        params, grammar, ids, hidden, positions, writers.seeds, writers.dropped, syntax,
        writers.temperature, Truncation(writers.top_k, writers.top_p, writers.min_p),
    )


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
        drawn = _draw(params, grammar, ids, hidden, positions, writers, out.syntax)
        out, last, still = record(out, drawn, writing, last, stop_ids, writers.room)
        return step + 1, pool, last, positions + writing, still, out

    out = nothing_written(flat.tokens.shape[0], limit, writers.syntax)
    begin = (0, pool, flat.tokens, flat.positions, writers.room > 0, out)
    _, pool, _, _, writing, out = lax.while_loop(going, step_once, begin)
    return pool, out.replace(ended=~writing)
