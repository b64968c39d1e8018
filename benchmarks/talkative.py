"""A policy of 11 million weights whose turns have 30 to 63 tokens, as benchmarks need one.

Nobody trained it: the residual stream says how many tokens of the turn are written, the head draws
any word that says there is one more, and from the thirtieth on it may end the turn. All layers are
random, and add too little to change that. It begins runs in a warm start's place.
"""

from __future__ import annotations

import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from tarl_jax.config import RunConfig
from tarl_jax.models.decoder import Params, init_params
from tarl_jax.rollout.environment import Environment
from tarl_jax.runs import checkpoint
from tarl_jax.training.parts import Parts
from tarl_jax.warm_start.recipe import warm_start_digest

LEAST, MOST = 30, 63  # tokens of a turn, its end among them
FIELDS = {"model.d_model": "256", "model.num_layers": "4", "model.num_heads": "8",
          "model.d_ff": "3072", "model.tie_embeddings": "False", "rollout.max_turn_tokens": "64"}


def keep(config: RunConfig, folder: Path) -> int:
    """Puts it where a run of `config`, whose warm starts are kept in `folder`, finds its own.

    Returns: how many parameters it has.
    """
    parts = Parts()
    env = Environment.from_config(config, parts.domain, parts.tasks, parts.user)
    params = talkative(config, env)
    checkpoint.save_params(folder / f"warm_start-{warm_start_digest(config, env)}", params)
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def talkative(config: RunConfig, env: Environment) -> Params:
    """Its parameters."""
    texts = [env.tokenizer.decode([token]) for token in range(env.vocab_size)]
    words = [token for token, text in enumerate(texts) if text.isalnum()]
    written = np.zeros(env.vocab_size, np.int32)  # tokens of the turn, where this is the newest
    written[words] = 1 + np.arange(len(words)) % (MOST - 1)
    params = init_params(config.model, env.vocab_size, jax.random.key(0))
    embed, head = (np.array(params[name]) for name in ("embed", "head"))
    embed[np.arange(env.vocab_size), written] += 3.0
    # Behind the last norm that entry is √D, about.
    likely = 12.0 / config.model.d_model**0.5
    for count in range(MOST):
        follows = written == count + 1
        head[count, follows] += likely
        if count + 1 >= LEAST:  # the end is as likely as to have come by chance in what is left
            odds = 1 / max(MOST - 1 - count, 1e-3)
            head[count, env.chat.stop_id] += likely + math.log(
                max(follows.sum(), 1) * odds) / config.model.d_model**0.5
    return {**params, "embed": jnp.asarray(embed), "head": jnp.asarray(head)}
