"""Shops and what happens in them: domains, tasks, users, the verifier.

    from tarl_jax.sandbox import load_domain
"""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    # Imported when asked for, so that one module of the package costs no more than itself.
    if name in ("load_domain", "load_benchmark_tasks"):
        from tarl_jax.sandbox import published

        return getattr(published, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
