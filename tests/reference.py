"""Plain versions that the project's own are checked against."""

import hashlib
import json

import jax
import jax.numpy as jnp


def token_log_probs(logits, tokens, temperature):
    """(log-probability of each token, entropy in nats), both [B, S], of scores [B, S, V]."""
    log_p = jax.nn.log_softmax(logits / temperature, axis=-1)
    chosen = jnp.take_along_axis(log_p, tokens[..., None], axis=-1)[..., 0]
    return chosen, -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)


def state_hash(database):
    """τ-bench's definition, word for word, over a whole database."""

    def frozen(value):
        if isinstance(value, dict):
            return tuple((key, frozen(item)) for key, item in sorted(value.items()))
        return tuple(map(frozen, value)) if isinstance(value, list) else value

    return hashlib.sha256(str(frozen(database)).encode()).hexdigest()


def state_hash_tau2(database):
    """τ²-bench's definition over a whole database."""
    return hashlib.sha256(json.dumps(database, sort_keys=True).encode()).hexdigest()
