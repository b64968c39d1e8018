"""What programs take for themselves while they run, by count, where no compiler can be asked.

Counted are the arrays that must be there at once: what the backward pass keeps of each layer, one
layer computed again with its slopes, parameters and gradients in the dtype of the products, what
is gathered of parameters that are split, a part of the head's scores. What a compiler shares or
lays out in other ways is not, nor are kernels' workspaces: MARGIN is added. docs/scaling.md sets
this count beside what TPU's compiler says of the same programs.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax.sharding import Mesh

from tarl_jax.config import ModelConfig, RunConfig
from tarl_jax.models.pages import QUERIES
from tarl_jax.parallel.mesh import row_shards
from tarl_jax.rl.objective import has_value_model, in_loss, needs_score
from tarl_jax.training.memory import Memory

MARGIN = 1.15
_HEAD_TOKENS = 512  # that the head runs over at a time
_SCORES = 4  # arrays over the vocabulary, float32, that it holds at once
_DRAWN = 6  # the same, of a row that a token is drawn for
_SPLITS = 16  # parts of a row's pages that the GPU's kernel sums up apart, at most


def estimate(
    config: RunConfig, counted: Memory, mesh: Mesh, shape: tuple[int, int], fed: int
) -> dict[str, float]:
    """Bytes of each program beside its arguments, on one device.

    Args:
      mesh: of updates.
      shape: (rows, length) of a micro-batch.
      fed: tokens that a step of rollouts feeds on one device.
    """
    model, rl = config.model, config.rl
    of, tensor, fsdp = jnp.dtype(model.dtype).itemsize, mesh.shape["tensor"], mesh.shape["fsdp"]
    tokens = shape[0] // row_shards(mesh) * shape[1]
    width = tokens * model.d_model * of
    layer = _layer(model, tokens, tensor)
    ratio = of / jnp.dtype(model.param_dtype).itemsize
    head = model.vocab_size // tensor
    scores = _SCORES * _HEAD_TOKENS * head * 4
    gathered = 0
    if fsdp > 1:  # two layers' weights, the embedding and the head
        per_layer = counted.whole * fsdp * ratio / model.num_layers
        gathered = int(2 * per_layer + 2 * head * model.d_model * of)
    cast = 0 if ratio == 1 else int(ratio * (counted.policy + counted.frozen))
    kept = {
        "full": width // tensor, "dots": layer // 2 + width // tensor,
        "none": 2 * layer,
    }[model.remat] * model.num_layers
    networks = 2 if has_value_model(rl) and rl.value.trunk == "own" else 1
    slopes = int(ratio * counted.gradient)
    head_slope = 0 if model.lora.rank else model.d_model * head * (4 + of)
    forward = cast + gathered + layer + 4 * width + scores
    found = {
        "gradient": forward + layer + networks * kept + slopes + head_slope
        + (cast if in_loss(rl) else 0),
        "apply": 0.05 * counted.gradient,  # leaf by leaf, in place
    }
    if needs_score(rl):
        found["score"] = forward
    if rl.measure_after:
        found["measure"] = forward
    found |= _rollouts(config, config.mesh.rollout_devices or mesh.size, fed)
    return {name: MARGIN * size for name, size in found.items()}


def _layer(model: ModelConfig, tokens: int, tensor: int) -> int:
    """Bytes of all that one layer computes for so many tokens, norms in float32 included."""
    heads = 2 * (model.num_heads + model.num_kv_heads) * model.head_dim
    split = (heads + 3 * model.d_ff) // tensor
    of = jnp.dtype(model.dtype).itemsize
    return tokens * (of * (4 * model.d_model + split) + 2 * 4 * model.d_model)


def _rollouts(config: RunConfig, devices: int, fed: int) -> dict[str, float]:
    """Of the programs with pages; attention of fed tokens is the plain one, a block at a time.

    The one that writes is a loop over steps around one over layers: it holds a layer's weights as
    they are taken out of the stack, this layer's and the next one's, and the head as its product
    takes it. Whole rows of scores are drawn from.
    """
    model, rollout, tensor = config.model, config.rollout, config.mesh.rollout_tensor
    longest = rollout.max_episode_tokens
    of, heads = jnp.dtype(model.dtype).itemsize, max(model.num_heads // tensor, 1)
    rows = -(-rollout.slots // max(devices // tensor, 1))
    block = 3 * QUERIES * heads * longest * 4
    read = 2 * max(model.num_kv_heads // tensor, 1) * longest * model.head_dim * of
    scores = _DRAWN * rows * model.vocab_size * 4
    weights = model.head_dim * 2 * (model.num_heads + model.num_kv_heads) + 3 * model.d_ff
    layers = 2 * model.d_model * weights // tensor * of
    head = model.vocab_size // tensor * model.d_model * of
    splits = rows * heads * _SPLITS * (model.head_dim + 2) * 4
    return {
        "feed": _layer(model, fed, tensor) + block + 2 * read + scores,
        "decode": _layer(model, rows, tensor) + scores + layers + head + splits,
    }
