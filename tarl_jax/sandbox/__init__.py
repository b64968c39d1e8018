"""Shops and what happens in them: domains, tasks, users, the verifier.

    from tarl_jax.sandbox import load_benchmark_tasks, load_domain, score, verify
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOMES = {"load_domain": "published", "load_benchmark_tasks": "published", "score": "scoring",
          "verify": "verifier"}


def __getattr__(name: str) -> Any:
    # Imported when asked for, so that one module of the package costs no more than itself.
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
