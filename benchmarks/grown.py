"""The embedded default's policy in a larger body: it says the same, at the cost of its size.

The further columns of the residual stream are zero, further heads and hidden units write nothing,
and further layers add nothing to it. So a benchmark has turns as a trained policy writes them, of
a model that nobody had to train.
"""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp

from tarl_jax.config import RunConfig, from_config_dict
from tarl_jax.config.presets import sized
from tarl_jax.models.decoder import Params, init_params
from tarl_jax.rollout.environment import Environment
from tarl_jax.runs import checkpoint
from tarl_jax.training.parts import Parts
from tarl_jax.warm_start.recipe import load_default, warm_start_digest

BODY = {"model.d_model": "256", "model.num_layers": "8", "model.num_heads": "8",
        "model.d_ff": "1536"}  # 11 million parameters


def keep(config: RunConfig, folder: Path) -> int:
    """Puts it where a run of `config`, whose warm starts are kept in `folder`, finds its own.

    Returns: how many parameters it has.
    """
    env, default = _environment(config), from_config_dict(sized(""))
    small = load_default(warm_start_digest(default, _environment(default)))
    assert small is not None
    large = grown(small, init_params(config.model, env.vocab_size, jax.random.key(0)))
    digest = warm_start_digest(config, env)
    checkpoint.save_params(folder / f"warm_start-{digest}", large)
    return sum(leaf.size for leaf in jax.tree.leaves(large))


def _environment(config: RunConfig) -> Environment:
    parts = Parts()
    return Environment.from_config(config, parts.domain, parts.tasks, parts.user)


def grown(small: Params, large: Params) -> Params:
    """`large`, made to compute what `small` does; both stacked, of Qwen3's kind, tied embeddings.

    They have the same vocabulary, key heads and head width.
    """
    old, new = small["layers"], large["layers"]
    layers, width, heads, _ = old["wq"].shape
    groups, hidden = old["wk"].shape[2], old["w_gate"].shape[2]
    more = new["wq"].shape[2] // groups  # query heads of a key head
    place = jnp.array([h // (heads // groups) * more + h % (heads // groups) for h in range(heads)])
    # The mean square is over more columns, most of them zero.
    smaller = (width / new["wq"].shape[1]) ** 0.5
    block = {
        name: new[name].at[:layers, :width].set(old[name] * smaller)
        for name in ("attn_norm", "mlp_norm")
    }
    block |= {name: new[name].at[:layers].set(old[name]) for name in ("q_norm", "k_norm")}
    block |= {name: new[name].at[:layers, :width].set(old[name]) for name in ("wk", "wv")}
    block |= {name: new[name].at[:layers, :width, :hidden].set(old[name])
              for name in ("w_gate", "w_up")}
    block["wq"] = new["wq"].at[:layers, :width, place].set(old["wq"])
    block["wo"] = jnp.zeros_like(new["wo"]).at[:layers, place, :, :width].set(old["wo"])
    block["w_down"] = jnp.zeros_like(new["w_down"]).at[:layers, :hidden, :width].set(old["w_down"])
    return {
        "embed": jnp.zeros_like(large["embed"]).at[:, :width].set(small["embed"]),
        "final_norm": large["final_norm"].at[:width].set(small["final_norm"] * smaller),
        "layers": block,
    }
