"""Parameter trees, and the random numbers that they start from."""

from __future__ import annotations

import hashlib
from typing import Any

import jax

Params = dict[str, Any]


def named_key(key: jax.Array, name: str) -> jax.Array:
    """A random stream by name: adding a stream never shifts the others."""
    return jax.random.fold_in(key, int.from_bytes(hashlib.sha256(name.encode()).digest()[:4]))
