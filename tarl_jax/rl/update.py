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
from tarl_jax.mesh import (
    by_rows,
    bytes_on_device,
    check_fits,
    place_shapes,
    replicated,
    tree_shardings,
)
from tarl_jax.models import decoder
from tarl_jax.models.head import sampled_log_probs
from tarl_jax.models.lora import init_adapters, join
from tarl_jax.rl import losses
from tarl_jax.types import Batch


class NonFiniteError(FloatingPointError):
    """A loss or gradient is not a number; the parameters before it are still good."""


@struct.dataclass
class TrainState:
    """Parameters and optimiser state.

    Attributes:
      params: what trains: all parameters, or the adapters.
      opt_state: the optimiser's.
      frozen: the parameters that adapters stand on; {} where all train.
    """

    params: decoder.Params
    opt_state: Any
    frozen: decoder.Params = struct.field(default_factory=dict)

    @property
    def policy(self) -> decoder.Params:
        """All parameters in one tree."""
        return join(self.frozen, self.params)


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
    """Holds the jitted programs of the RL update for one model, optimiser and temperature.

    Attributes:
      policy_shapes: shape, dtype and sharding of all parameters of a policy without adapters.
      policy_shardings: the last of the three alone.
    """

    def __init__(
        self, model: ModelConfig, vocab_size: int, config: RLConfig, temperature: float, mesh: Mesh
    ):
        check_fits(mesh, model, vocab_size)
        self._mesh = mesh
        self._model = model
        self._vocab_size = vocab_size
        self._optimizer = make_optimizer(config)
        self._with_reference = config.kl_coef > 0
        gradient = functools.partial(_gradient, model, config, temperature)
        # Where results live is said, not inferred: arrays that went once round the loop then look
        # the same to jit as the first ones, and nothing compiles twice.
        whole = replicated(mesh)
        self.policy_shapes = decoder.placed_shapes(model, vocab_size, mesh)
        self.policy_shardings = jax.tree.map(lambda x: x.sharding, self.policy_shapes)
        trained = jax.eval_shape(self._trained, self.policy_shapes)
        self._shardings = tree_shardings(mesh, decoder.logical_axes(trained))
        self._opt_shardings = opt_shardings = optax.tree_utils.tree_map_params(
            self._optimizer,
            lambda _, where: where,
            jax.eval_shape(self._optimizer.init, trained),
            self._shardings,
            transform_non_params=lambda _: whole,
        )
        accumulated = (self._shardings, whole)
        self._gradient = jax.jit(gradient, donate_argnums=0, out_shardings=accumulated)
        self._apply = jax.jit(
            functools.partial(_apply, self._optimizer), donate_argnums=(0, 1),
            out_shardings=(self._shardings, opt_shardings, whole, whole, whole),
        )
        self._zeros = jax.jit(_zeros, out_shardings=accumulated)
        self._own = jax.jit(
            lambda policy: jax.tree.map(jnp.copy, self._trained(policy)),
            out_shardings=self._shardings,
        )
        self._init = jax.jit(self._optimizer.init, out_shardings=opt_shardings)

    def _trained(self, policy: decoder.Params) -> decoder.Params:
        if not self._model.lora.rank:
            return policy
        return init_adapters(self._model, policy, jax.random.key(0))

    def place(self, params: decoder.Params) -> decoder.Params:
        """All parameters of a policy, where this mesh keeps them."""
        return jax.device_put(params, self.policy_shardings)

    def random(self, key: jax.Array) -> decoder.Params:
        """Random parameters of a policy, made where this mesh keeps them."""
        make = functools.partial(decoder.init_params, self._model, self._vocab_size)
        return jax.jit(make, out_shardings=self.policy_shardings)(key)

    def shapes(self) -> TrainState:
        """What `init` gives, as shapes with shardings; nothing is frozen."""
        trained = jax.eval_shape(self._trained, self.policy_shapes)
        opt_state = jax.eval_shape(self._optimizer.init, trained)
        return TrainState(
            place_shapes(trained, self._shardings), place_shapes(opt_state, self._opt_shardings)
        )

    def init(self, params: decoder.Params) -> TrainState:
        """A fresh state from all parameters of a policy.

        What trains is copied, since updates donate it; what is frozen is taken as it is.
        """
        params = self.place(params)
        trained = self._own(params)
        return TrainState(trained, self._init(trained), params if self._model.lora.rank else {})

    def compile(
        self, state: TrainState, shapes: Sequence[tuple[int, int]], packed: bool = False
    ) -> None:
        """Compiles the programs for batches of these (rows, length); `state` is left as it was."""
        batches = []
        for shape in shapes:
            zeros = np.zeros(shape, np.float32)
            segments = np.zeros(shape, np.int32) if packed else None
            batches.append(Batch(np.zeros(shape, np.int32), zeros, zeros, zeros, segments))
        copy = jax.tree.map(jnp.copy, state.params)
        with jax.set_mesh(self._mesh):
            reference = state.frozen or state.params  # a reference has no adapters
            accumulated = self._sum(state, batches, reference)
            self._apply(copy, self._init(state.params), accumulated)

    def lower(self, shape: tuple[int, int], packed: bool) -> dict[str, Any]:
        """The update's programs for a (rows, length) of micro-batches, lowered but not compiled.

        Needs no arrays and none of the devices: a mesh of devices that are elsewhere will do.
        """
        state = self.shapes()
        policy, trained = self.policy_shapes, state.params
        whole = replicated(self._mesh)
        sums = jax.eval_shape(_zeros, trained)[1]
        accumulated = trained, place_shapes(sums, jax.tree.map(lambda _: whole, sums))
        rows = by_rows(self._mesh)
        whole_numbers = jax.ShapeDtypeStruct(shape, jnp.int32, sharding=rows)
        numbers = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=rows)
        batch = Batch(whole_numbers, numbers, numbers, numbers, whole_numbers if packed else None)
        frozen = policy if self._model.lora.rank else {}
        reference = policy if self._with_reference else None
        with jax.set_mesh(self._mesh):
            return {
                "gradient": self._gradient.lower(accumulated, trained, frozen, reference, batch),
                "apply": self._apply.lower(trained, state.opt_state, accumulated),
            }

    def bytes_per_device(self) -> tuple[int, int]:
        """(what trains and is frozen, the optimiser's state), of the device with most."""
        state = self.shapes()
        parameters = bytes_on_device(state.params)
        if self._model.lora.rank:
            parameters += bytes_on_device(self.policy_shapes)
        return parameters, bytes_on_device(state.opt_state)

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
        with jax.set_mesh(self._mesh):
            accumulated = self._sum(state, batches, reference)
            params, opt_state, sums, norm, size = self._apply(
                state.params, state.opt_state, accumulated
            )
        state = TrainState(params, opt_state, state.frozen)
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


    def _sum(
        self, state: TrainState, batches: Sequence[Batch], reference: decoder.Params | None
    ) -> tuple[decoder.Params, Sums]:
        """The gradient of the loss sum over all batches, and the sums."""
        reference = reference if self._with_reference else None
        accumulated = self._zeros(state.params)
        for batch in batches:
            batch = jax.device_put(batch, by_rows(self._mesh))
            accumulated = self._gradient(accumulated, state.params, state.frozen, reference, batch)
        return accumulated


def _zeros(params: decoder.Params) -> tuple[decoder.Params, Sums]:
    return jax.tree.map(jnp.zeros_like, params), Sums(*(jnp.zeros(()) for _ in range(8)))


def _gradient(
    model: ModelConfig,
    config: RLConfig,
    temperature: float,
    accumulated: tuple[decoder.Params, Sums],
    params: decoder.Params,
    frozen: decoder.Params,
    reference: decoder.Params | None,
    batch: Batch,
) -> tuple[decoder.Params, Sums]:
    """Adds the gradient of the batch's loss sum, and its sums, to `accumulated`."""
    mask, old = batch.sampled, batch.log_probs

    def log_probs_of(p: decoder.Params) -> tuple[jax.Array, jax.Array]:
        hidden = decoder.hidden_states(p, model, batch.tokens, batch.segments)
        return sampled_log_probs(p, hidden, batch.tokens, mask, temperature)

    def loss_sum(p: decoder.Params) -> tuple[jax.Array, Sums]:
        log_probs, entropy = log_probs_of(join(frozen, p))
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
    params: decoder.Params,
    opt_state: optax.OptState,
    accumulated: tuple[decoder.Params, Sums],
) -> tuple[decoder.Params, optax.OptState, Sums, jax.Array, jax.Array]:
    """One step; also the sums, and the norms of the gradient and of the new parameters."""
    total, sums = accumulated
    gradient = jax.tree.map(lambda g: g / jnp.maximum(sums.tokens, 1.0), total)
    updates, opt_state = optimizer.update(gradient, opt_state, params)
    params = optax.apply_updates(params, updates)
    norms = optax.global_norm(gradient), optax.global_norm(params)
    return params, opt_state, sums, *norms
