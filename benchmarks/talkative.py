"""A policy of 11 million random weights whose turns have some forty tokens, as benchmarks need one.

Each token may end its turn with the same probability, whatever was said; all others are about
equally likely. It begins runs in a warm start's place.
"""

from __future__ import annotations

import math
from pathlib import Path

import jax

from tarl_jax.config import RunConfig
from tarl_jax.models.decoder import Params, init_params
from tarl_jax.rollout.environment import Environment
from tarl_jax.runs import checkpoint
from tarl_jax.training.parts import Parts
from tarl_jax.warm_start.recipe import warm_start_digest

TOKENS = 45  # of a turn, in the mean, were none cut off
FIELDS = {"model.d_model": "256", "model.num_layers": "4", "model.num_heads": "8",
          "model.d_ff": "3072", "model.tie_embeddings": "False", "rollout.max_turn_tokens": "128"}


def keep(config: RunConfig, folder: Path) -> int:
    """Puts it where a run of `config`, whose warm starts are kept in `folder`, finds its own.

    Returns: how many parameters it has.
    """
    parts = Parts()
    env = Environment.from_config(config, parts.domain, parts.tasks, parts.user)
    params = talkative(config, env.vocab_size, env.chat.stop_id)
    checkpoint.save_params(folder / f"warm_start-{warm_start_digest(config, env)}", params)
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def talkative(config: RunConfig, vocab_size: int, stop_id: int) -> Params:
    """Its parameters; `stop_id`: the token that ends a turn."""
    params = init_params(config.model, vocab_size, jax.random.key(0))
    # The first entry of the residual stream outweighs all others, and nothing is added to it: after
    # the last norm it is √D, about.
    params["embed"] = params["embed"].at[:, 0].set(3.0)
    layers = params["layers"]
    layers["wo"] = layers["wo"].at[..., 0].set(0.0)
    layers["w_down"] = layers["w_down"].at[..., 0].set(0.0)
    score = math.log(vocab_size / (TOKENS - 1))
    params["head"] = params["head"].at[0].set(0.0)
    params["head"] = params["head"].at[0, stop_id].set(score / config.model.d_model**0.5)
    return params
