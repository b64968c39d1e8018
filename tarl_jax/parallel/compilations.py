"""Programs with names, and how often XLA has compiled each in this process.

A jitted function's own cache does not tell: what was compiled ahead of time enters it at the first
call, which compiles nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import jax

_EVENT = "/jax/core/compile/backend_compile_duration"
_compiled: Counter[str] = Counter()


def _note(event: str, seconds: float, **info: Any) -> None:
    if event == _EVENT:
        _compiled[str(info.get("fun_name", ""))] += 1


jax.monitoring.register_event_duration_secs_listener(_note)


def named(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function under a name by which its programs are counted; for `jax.jit`."""

    def program(*args: Any) -> Any:
        return function(*args)

    program.__name__ = program.__qualname__ = name
    return program


def compilations(prefix: str) -> int:
    """Programs whose names begin so, compiled (or read from the cache on disk) so far."""
    return sum(n for name, n in _compiled.items() if name.startswith(f"jit({prefix}"))


def abstract(tree: Any) -> Any:
    """The arrays on devices as shapes that say where they live: programs are compiled for them."""

    def of(x: Any) -> Any:
        if not isinstance(x, jax.Array):
            return x
        return jax.ShapeDtypeStruct(
            x.shape, x.dtype, sharding=x.sharding if x.committed else None,
            weak_type=x.aval.weak_type,
        )

    return jax.tree.map(of, tree)
