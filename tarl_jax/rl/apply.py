"""What begins and ends an update: gradients of zero, and one step of the optimisers."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from tarl_jax.rl.objective import Sums, Trained


def zeros(trained: Trained) -> tuple[Trained, Sums]:
    return jax.tree.map(jnp.zeros_like, trained), Sums.zeros()


def apply(
    optimizer: optax.GradientTransformation,
    value_optimizer: optax.GradientTransformation,
    trained: Trained,
    opt_state: Any,
    value_opt_state: Any,
    accumulated: tuple[Trained, Sums],
    train_policy: jax.Array,
) -> tuple[Trained, tuple[Any, Any], Sums, dict[str, jax.Array]]:
    """One step; also the sums, and the norms of the gradients and of the new parameters."""
    total, sums = accumulated
    gradient = jax.tree.map(lambda g: g / jnp.maximum(sums.count, 1.0), total)
    norms = {"gradient_norm": optax.global_norm(gradient.params)}
    updates, new_opt_state = optimizer.update(gradient.params, opt_state, trained.params)
    params = optax.apply_updates(trained.params, updates)
    value = trained.value
    if value:
        keep = functools.partial(jax.tree.map, lambda new, old: jnp.where(train_policy, new, old))
        params, new_opt_state = keep((params, new_opt_state), (trained.params, opt_state))
        updates, value_opt_state = value_optimizer.update(gradient.value, value_opt_state, value)
        value = optax.apply_updates(value, updates)
        norms["value_gradient_norm"] = optax.global_norm(gradient.value)
        norms["norm_of_the_new_value_model"] = optax.global_norm(value)
    norms["norm_of_the_new_parameters"] = optax.global_norm(params)
    return Trained(params, value), (new_opt_state, value_opt_state), sums, norms
