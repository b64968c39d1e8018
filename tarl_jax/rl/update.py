"""One optimiser update: gradients summed over micro-batches, then one step, all jitted.

Micro-batches have different lengths (few shapes, so few programs); each adds the gradient of its
*sum* of losses, and the update divides by the number of sampled tokens of all of them, so that
the split never changes the result.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jax.sharding import Mesh

from tarl_jax.config import ModelConfig, RLConfig
from tarl_jax.mesh import by_rows, replicated
from tarl_jax.models import decoder
from tarl_jax.models.head import sampled_log_probs
from tarl_jax.rl import losses
from tarl_jax.types import Batch


class NonFiniteError(FloatingPointError):
    """A loss or gradient is not a number; the parameters before it are still good."""


@struct.dataclass
class TrainState:
    """Parameters and optimiser state; all that an update changes."""

    params: decoder.Params
    opt_state: Any


@struct.dataclass
class Sums:
    """Sums over sampled tokens, and their number `tokens`; `gap_max` is a maximum."""

    tokens: jax.Array
    loss: jax.Array
    kl: jax.Array  # from the sampling policy to the present one, k3
    kl_reference: jax.Array
    entropy: jax.Array
    clipped: jax.Array
    gap: jax.Array  # |trainer's log-prob - sampler's|
    gap_max: jax.Array


def make_optimizer(config: RLConfig) -> optax.GradientTransformation:
    """AdamW with warm-up to a constant rate, after clipping the gradient's global norm."""
    warmup = max(config.warmup_steps, 1)

    def rate(count: jax.Array) -> jax.Array:
        return config.learning_rate * jnp.minimum((count + 1) / warmup, 1.0)

    return optax.chain(
        optax.clip_by_global_norm(config.max_grad_norm),
        optax.adamw(rate, b1=0.9, b2=0.99, weight_decay=config.weight_decay),
    )


class Updater:
    """Holds the jitted programs of the RL update for one model, optimiser and temperature."""

    def __init__(self, model: ModelConfig, config: RLConfig, temperature: float, mesh: Mesh):
        self._mesh = mesh
        self._optimizer = make_optimizer(config)
        self._with_reference = config.kl_coef > 0
        gradient = functools.partial(_gradient, model, config, temperature)
        # Where results live is said, not inferred: arrays that went once round the loop then look
        # the same to jit as the first ones, and nothing compiles twice.
        jit = functools.partial(jax.jit, out_shardings=replicated(mesh))
        self._gradient = jit(gradient, donate_argnums=0)
        self._apply = jit(functools.partial(_apply, self._optimizer), donate_argnums=0)
        self._zeros = jit(_zeros)
        self._copy = jit(lambda params: jax.tree.map(jnp.copy, params))
        self._init = jit(self._optimizer.init)

    def init(self, params: decoder.Params) -> TrainState:
        """A fresh state; owns a copy of `params`, since updates donate it."""
        params = self._copy(params)
        return TrainState(params, self._init(params))

    def compile(self, state: TrainState, shapes: Sequence[tuple[int, int]]) -> None:
        """Compiles the programs for batches of these (rows, length); `state` is left as it was."""
        reference = state.params if self._with_reference else None
        accumulated = self._zeros(state.params)
        for shape in shapes:
            zeros = np.zeros(shape, np.float32)
            batch = Batch(np.zeros(shape, np.int32), zeros, zeros, zeros)
            batch = jax.device_put(batch, by_rows(self._mesh))
            accumulated = self._gradient(accumulated, state.params, reference, batch)
        self._apply(TrainState(self._copy(state.params), self._init(state.params)), accumulated)

    @property
    def compilations(self) -> int:
        return self._gradient._cache_size() + self._apply._cache_size()

    def update(
        self, state: TrainState, batches: Sequence[Batch], reference: decoder.Params | None
    ) -> tuple[TrainState, dict[str, float]]:
        """One optimiser step on the micro-batches.

        Args:
          state: donated.
          reference: parameters that the KL penalty holds on to; needed where `kl_coef` > 0.
        Returns: the new state and means over sampled tokens.
        Raises: NonFiniteError if the loss or the gradient is not finite. The new parameters are
          then lost: the caller goes back to its last checkpoint.
        """
        if self._with_reference and reference is None:
            raise ValueError("rl.kl_coef > 0 needs reference parameters")
        reference = reference if self._with_reference else None
        accumulated = self._zeros(state.params)
        for batch in batches:
            batch = jax.device_put(batch, by_rows(self._mesh))
            accumulated = self._gradient(accumulated, state.params, reference, batch)
        state, sums, norm, size = self._apply(state, accumulated)
        sums, norm, size = jax.device_get((sums, norm, size))
        if not np.isfinite([sums.loss, norm, size]).all():
            raise NonFiniteError(
                f"loss sum {sums.loss}, gradient norm {norm}, norm of the new parameters {size}"
            )
        count = max(float(sums.tokens), 1.0)
        means = {
            name: float(getattr(sums, name)) / count
            for name in ("loss", "kl", "kl_reference", "entropy", "clipped", "gap")
        }
        return state, {
            **means,
            "gap_max": float(sums.gap_max),
            "grad_norm": float(norm),
            "tokens": float(sums.tokens),
        }


def _zeros(params: decoder.Params) -> tuple[decoder.Params, Sums]:
    return jax.tree.map(jnp.zeros_like, params), Sums(*(jnp.zeros(()) for _ in range(8)))


def _gradient(
    model: ModelConfig,
    config: RLConfig,
    temperature: float,
    accumulated: tuple[decoder.Params, Sums],
    params: decoder.Params,
    reference: decoder.Params | None,
    batch: Batch,
) -> tuple[decoder.Params, Sums]:
    """Adds the gradient of the batch's loss sum, and its sums, to `accumulated`."""
    mask, old = batch.sampled, batch.log_probs

    def log_probs_of(p: decoder.Params) -> tuple[jax.Array, jax.Array]:
        hidden = decoder.hidden_states(p, model, batch.tokens)
        return sampled_log_probs(p, hidden, batch.tokens, mask, temperature)

    def loss_sum(p: decoder.Params) -> tuple[jax.Array, Sums]:
        log_probs, entropy = log_probs_of(p)
        loss, clipped = losses.clipped_policy_loss(
            log_probs, old, batch.advantages, mask, config.clip_low, config.clip_high
        )
        kl_reference = jnp.zeros(())
        if reference is not None:
            anchor, _ = log_probs_of(jax.lax.stop_gradient(reference))
            kl_reference = losses.kl_k3(log_probs, anchor, mask)
            loss = loss + config.kl_coef * kl_reference
        gap = mask * jnp.abs(log_probs - old)
        sums = Sums(
            tokens=mask.sum(),
            loss=loss,
            kl=losses.kl_k3(old, log_probs, mask),
            kl_reference=kl_reference,
            entropy=jnp.sum(mask * entropy),
            clipped=clipped,
            gap=gap.sum(),
            gap_max=gap.max(),
        )
        return loss, sums

    gradient, sums = jax.grad(loss_sum, has_aux=True)(params)
    total, before = accumulated
    added = jax.tree.map(jnp.add, before, sums)
    added = added.replace(gap_max=jnp.maximum(before.gap_max, sums.gap_max))
    return jax.tree.map(jnp.add, total, gradient), added


def _apply(
    optimizer: optax.GradientTransformation,
    state: TrainState,
    accumulated: tuple[decoder.Params, Sums],
) -> tuple[TrainState, Sums, jax.Array, jax.Array]:
    total, sums = accumulated
    gradient = jax.tree.map(lambda g: g / jnp.maximum(sums.tokens, 1.0), total)
    updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    norms = optax.global_norm(gradient), optax.global_norm(params)
    return TrainState(params, opt_state), sums, *norms
