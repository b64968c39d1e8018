"""The engine's device programs: feed forced tokens, sample, resize. All shapes are static."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax

from tarl_jax.config import ModelConfig
from tarl_jax.models import decoder
from tarl_jax.models.cache import Cache
from tarl_jax.models.cache import resize as resize_cache
from tarl_jax.rollout.sampling import sample


@struct.dataclass
class EngineState:
    """What the device keeps between ticks.

    Attributes:
      cache: keys and values of everything fed so far.
      lengths: int32 [B]; tokens of each row in the cache.
      last: int32 [B]; each row's newest token, which is not in the cache yet.
      seeds: uint32 [B]; of each row's episode.
    """

    cache: Cache
    lengths: jax.Array
    last: jax.Array
    seeds: jax.Array


def extend(
    model: ModelConfig,
    params: decoder.Params,
    state: EngineState,
    slots: jax.Array,
    tokens: jax.Array,
    used: jax.Array,
    last: jax.Array,
    fresh: jax.Array,
    seeds: jax.Array,
) -> EngineState:
    """Writes `used` of the `tokens` [B, C] behind what the cache holds of `slots`.

    A fresh slot starts over at position 0 with a new seed; `last` becomes the slot's newest token.
    """
    start = jnp.where(fresh, 0, state.lengths.at[slots].get(mode="clip"))
    _, cache = decoder.cached_step(params, model, state.cache, tokens, start, slots)
    kept_seeds = state.seeds.at[slots].get(mode="clip")
    return EngineState(
        cache=cache,
        lengths=state.lengths.at[slots].set(start + used, mode="drop"),
        last=state.last.at[slots].set(last, mode="drop"),
        seeds=state.seeds.at[slots].set(jnp.where(fresh, seeds, kept_seeds), mode="drop"),
    )


def decode(
    model: ModelConfig,
    stop_id: int,
    limit: int,
    params: decoder.Params,
    state: EngineState,
    room: jax.Array,
    patience: jax.Array,
    temperature: jax.Array,
) -> tuple[EngineState, tuple[jax.Array, jax.Array, jax.Array, jax.Array]]:
    """Samples up to `room` tokens per row, until at most `patience` rows still write.

    Returns the state and (tokens [B, T], their log-probs [B, T], counts [B], turn ended [B]).
    """
    rows = jnp.arange(room.shape[0])
    keys = jax.vmap(jax.random.key)(state.seeds)

    def going(carry):
        step, _, writing, *_ = carry
        running = jnp.sum(writing)
        return (step < limit) & (running > 0) & ((running > patience) | (step == 0))

    def step_once(carry):
        step, state, writing, tokens, log_probs, counts = carry
        hidden, cache = decoder.cached_step(
            params, model, state.cache, state.last[:, None], state.lengths
        )
        token, log_prob = sample(
            decoder.logits(params, hidden[:, 0]), keys, state.lengths, temperature
        )
        column = jnp.where(writing, counts, limit)
        tokens = tokens.at[rows, column].set(token, mode="drop")
        log_probs = log_probs.at[rows, column].set(log_prob, mode="drop")
        counts = counts + writing
        state = state.replace(
            cache=cache,
            lengths=state.lengths + writing,
            last=jnp.where(writing, token, state.last),
        )
        writing = writing & (token != stop_id) & (counts < room)
        return step + 1, state, writing, tokens, log_probs, counts

    shape = (room.shape[0], limit)
    carry = (
        0,
        state,
        room > 0,
        jnp.zeros(shape, jnp.int32),
        jnp.zeros(shape, jnp.float32),
        jnp.zeros(shape[0], jnp.int32),
    )
    _, state, writing, tokens, log_probs, counts = lax.while_loop(going, step_once, carry)
    return state, (tokens, log_probs, counts, ~writing)


def resize(state: EngineState, keep: jax.Array, length: int) -> EngineState:
    """The slots `keep` [B], with room for `length` positions."""
    return EngineState(
        cache=resize_cache(state.cache, keep, length),
        lengths=state.lengths[keep],
        last=state.last[keep],
        seeds=state.seeds[keep],
    )
