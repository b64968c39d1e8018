"""What an update minimises, on one micro-batch: the policy's loss, its penalties, the value loss.

Everything is a sum over tokens; `update.py` divides once, by `Sums.count`, when all are in.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from tarl_jax.config import ModelConfig, RLConfig
from tarl_jax.models import decoder
from tarl_jax.models.audio_inputs import hidden_states
from tarl_jax.models.head import init_value_params, sampled_log_probs, values
from tarl_jax.models.lora import join, trained_part
from tarl_jax.rl import losses
from tarl_jax.types import Batch


@struct.dataclass
class Trained:
    """What has gradients: the policy's parameters (or adapters), the value model's ({}: none)."""

    params: decoder.Params
    value: decoder.Params


@struct.dataclass
class Sums:
    """Sums over sampled tokens, and their number `tokens`; `gap_max` is a maximum."""

    tokens: jax.Array
    loss: jax.Array  # the policy's, weighted, penalties included; to be divided by `count`
    kl: jax.Array  # from the sampling policy to the present one, k3
    kl_reference: jax.Array
    entropy: jax.Array
    clipped: jax.Array
    gap: jax.Array  # |present log-prob - old one|
    gap_max: jax.Array
    count: jax.Array  # tokens or episodes, as `rl.loss_mean` has it
    value_loss: jax.Array  # weighted as `loss` is

    @classmethod
    def zeros(cls) -> Sums:
        return cls(**{field.name: jnp.zeros(()) for field in dataclasses.fields(cls)})

    def plus(self, other: Sums) -> Sums:
        added = jax.tree.map(jnp.add, self, other)
        return added.replace(gap_max=jnp.maximum(self.gap_max, other.gap_max))

    def means(self, valued: bool) -> dict[str, float]:
        """Per sampled token, of sums on the host; the losses by `count`.

        valued: whether there is a value model.
        """
        tokens, count = max(float(self.tokens), 1.0), max(float(self.count), 1.0)
        names = ("kl", "kl_reference", "entropy", "clipped", "gap")
        return {
            "loss": float(self.loss) / count,
            **{name: float(getattr(self, name)) / tokens for name in names},
            "gap_max": float(self.gap_max),
            "tokens": float(self.tokens),
            **({"value_loss": float(self.value_loss) / count} if valued else {}),
        }


def has_value_model(config: RLConfig) -> bool:
    return config.advantage == "gae"


def has_shares(config: RLConfig) -> bool:
    """Whether batches say what share of its episode a token is."""
    return config.loss_mean != "token"


def in_loss(config: RLConfig) -> bool:
    """Whether the loss holds on to a reference."""
    return config.kl_coef > 0 and config.kl_in == "loss"


def init_value(model: ModelConfig, config: RLConfig, policy: decoder.Params) -> decoder.Params:
    """What trains of the value model, its head at zero; {} where there is none.

    With a trunk of its own: a copy of all of the policy's, or, where only adapters train, adapters
    on the same frozen weights. policy: all its parameters, without adapters; arrays or shapes.
    """
    if not has_value_model(config):
        return {}
    head = jnp.zeros(policy["final_norm"].shape, jnp.float32)
    if config.value.trunk == "shared":
        return {"value_head": head}
    own = trained_part(model, policy, jax.random.key(1))
    return {**own, "value_head": head} if model.lora.rank else init_value_params(own)


def _hidden_states(params: decoder.Params, model: ModelConfig, batch: Batch) -> jax.Array:
    return hidden_states(params, model, batch.tokens, batch.segments, batch.audio_inputs)


def state_values(
    model: ModelConfig,
    config: RLConfig,
    trained: Trained,
    frozen: decoder.Params,
    hidden: jax.Array | None,
    batch: Batch,
) -> jax.Array:
    """Per sampled token the value of the state that it was sampled in, [B, S]; else 0.

    hidden: the policy's, which a shared trunk's head stands on.
    """
    if config.value.trunk == "own":
        own = join(frozen, trained.value)
        hidden = _hidden_states(own, model, batch)
    assert hidden is not None
    after = values(trained.value, hidden)  # of the state behind each token
    return jnp.where(batch.sampled > 0, jnp.pad(after[:, :-1], ((0, 0), (1, 0))), 0.0)


def loss_sum(
    trained: Trained,
    frozen: decoder.Params,
    reference: decoder.Params | None,
    batch: Batch,
    model: ModelConfig,
    config: RLConfig,
    temperature: float,
    policy_loss: losses.PolicyLoss,
) -> tuple[jax.Array, Sums]:
    """The loss of a micro-batch, to be divided by `Sums.count`, and the sums."""
    mask, old = batch.sampled, batch.log_probs

    def log_probs_of(p: decoder.Params) -> tuple[jax.Array, jax.Array, jax.Array]:
        hidden = _hidden_states(p, model, batch)
        return hidden, *sampled_log_probs(p, hidden, batch.tokens, mask, temperature)

    hidden, log_probs, entropy = log_probs_of(join(frozen, trained.params))
    weights, count = losses.loss_weights(
        mask, batch.segments, config.loss_mean, config.loss_constant, batch.shares
    )
    loss, clipped = policy_loss(log_probs, batch, weights, config)
    kl_reference = jnp.zeros(())
    if reference is not None:
        anchor = log_probs_of(jax.lax.stop_gradient(reference))[1]
        terms = losses.kl_terms(log_probs, anchor, mask, config.kl_estimator)
        kl_reference = jnp.sum(mask * terms)
        loss = loss + config.kl_coef * jnp.sum(weights * terms)
    if config.entropy_coef:
        loss = loss - config.entropy_coef * jnp.sum(weights * entropy)
    total, value_loss = loss, jnp.zeros(())
    if has_value_model(config):
        assert batch.values is not None and batch.returns is not None
        now = state_values(model, config, trained, frozen, hidden, batch)
        value_loss = losses.value_loss(
            now, batch.values, batch.returns, mask, config.value.clip, weights
        )
        # What does not share parameters needs no weight against the other.
        total = loss + (config.value.coef if config.value.trunk == "shared" else 1.0) * value_loss
    gap = mask * jnp.abs(log_probs - old)
    return total, Sums(
        tokens=mask.sum(),
        loss=loss,
        kl=losses.kl_k3(old, log_probs, mask),
        kl_reference=kl_reference,
        entropy=jnp.sum(mask * entropy),
        clipped=clipped,
        gap=gap.sum(),
        gap_max=gap.max(),
        count=count,
        value_loss=value_loss,
    )


def score(
    model: ModelConfig,
    config: RLConfig,
    temperature: float,
    trained: Trained,
    frozen: decoder.Params,
    reference: decoder.Params | None,
    batch: Batch,
) -> dict[str, Any]:
    """What the advantages need to know of a micro-batch before the update, each [B, S].

    "values" for GAE, "log_probs" (the trainer's own) for truncated importance sampling, "kl" per
    token, from the sampler to the reference, for a penalty in the reward; only what the config
    asks for.
    """
    mask = batch.sampled
    found: dict[str, Any] = {}

    def hidden_of(p: decoder.Params) -> jax.Array:
        return _hidden_states(p, model, batch)

    def log_probs_of(p: decoder.Params, hidden: jax.Array) -> jax.Array:
        return sampled_log_probs(p, hidden, batch.tokens, mask, temperature)[0]

    policy, hidden = join(frozen, trained.params), None
    if config.tis_cap > 0 or (has_value_model(config) and config.value.trunk == "shared"):
        hidden = hidden_of(policy)
    if config.tis_cap > 0:
        assert hidden is not None
        found["log_probs"] = log_probs_of(policy, hidden)
    if has_value_model(config):
        found["values"] = state_values(model, config, trained, frozen, hidden, batch)
    if reference is not None:
        anchor = log_probs_of(reference, hidden_of(reference))
        found["kl"] = mask * losses.kl_terms(batch.log_probs, anchor, mask, config.kl_estimator)
    return found


def moved(
    model: ModelConfig,
    config: RLConfig,
    temperature: float,
    params: decoder.Params,
    frozen: decoder.Params,
    batch: Batch,
) -> dict[str, jax.Array]:
    """How far a policy is from the one that sampled a micro-batch, as sums over sampled tokens.

    "kl" from the sampler to the policy, k3; "outside": how many ratios are beyond the bounds of the
    clip, whatever their advantage; "tokens": how many tokens there are.
    """
    mask, policy = batch.sampled, join(frozen, params)
    hidden = _hidden_states(policy, model, batch)
    log_probs, _ = sampled_log_probs(policy, hidden, batch.tokens, mask, temperature)
    if config.loss == "gspo":
        ratio = losses.sequence_ratio(log_probs, batch)
    else:
        ratio = losses.bounded_exp(losses.change(log_probs, batch))
    outside = (ratio < 1 - config.clip_low) | (ratio > 1 + config.clip_high)
    return {
        "kl": losses.kl_k3(batch.log_probs, log_probs, mask),
        "outside": jnp.sum(mask * outside),
        "tokens": mask.sum(),
    }


def needs_score(config: RLConfig) -> bool:
    return has_value_model(config) or config.tis_cap > 0 or in_reward(config)


def in_reward(config: RLConfig) -> bool:
    """Whether the reward holds on to a reference."""
    return config.kl_coef > 0 and config.kl_in == "reward"
