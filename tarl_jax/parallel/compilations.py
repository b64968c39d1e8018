"""Programs with names, compiled from shapes, and how often XLA has compiled each in this process.

A jitted function's own cache does not tell: what was compiled ahead of time enters it at the first
call, which compiles nothing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any, Protocol

import jax
from jax.sharding import Mesh

_EVENT = "/jax/core/compile/backend_compile_duration"
_HIT = "/jax/compilation_cache/cache_hits"
_LONG = 1.0  # seconds
_compiled: Counter[str] = Counter()


class Progress(Protocol):
    """Told how many programs are compiled, how many there are, and of one that took long its name
    and time."""

    def __call__(self, done: int, total: int, note: str = "") -> object: ...


@dataclasses.dataclass(frozen=True)
class Wanted:
    """A program to compile.

    Attributes:
      name: of its kind. model_sized: whether it runs the model.
      args: shapes that say where they live, arrays of the host, and static numbers.
      at: the shapes that set it apart from others of its kind.
      mesh: that is set when it is called; None: none is.
    """

    name: str
    model_sized: bool
    function: Any
    args: tuple[Any, ...]
    at: str = ""
    mesh: Mesh | None = None

    @property
    def title(self) -> str:
        return f"{self.name} {self.at}".strip()

    @property
    def key(self) -> tuple[Any, ...]:
        """What is compiled once."""
        leaves = jax.tree.leaves(self.args)
        return (id(self.function), *(
            (x.shape, str(x.dtype)) if hasattr(x, "shape") else x for x in leaves
        ))

    def lower(self) -> Any:
        with jax.set_mesh(self.mesh) if self.mesh is not None else contextlib.nullcontext():
            return self.function.lower(*self.args)

    def compile(self) -> Any:
        return self.lower().compile()


def compile_all(wanted: Sequence[Wanted], progress: Progress) -> None:
    """Compiles programs side by side. Nothing runs, and no array is made."""

    def work(one: Wanted) -> str:
        begun = time.perf_counter()
        one.compile()
        seconds = time.perf_counter() - begun
        return f"{one.title}: {seconds:.0f} s" if seconds >= _LONG else ""

    progress(0, len(wanted))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for done, one in enumerate(as_completed([pool.submit(work, w) for w in wanted]), 1):
            progress(done, len(wanted), one.result())  # raises what the thread raised


def _note(event: str, seconds: float, **info: Any) -> None:
    if event == _EVENT:
        _compiled[str(info.get("fun_name", ""))] += 1


def _note_hit(event: str, **info: Any) -> None:
    if event == _HIT:
        _compiled[_HIT] += 1


jax.monitoring.register_event_duration_secs_listener(_note)
jax.monitoring.register_event_listener(_note_hit)


def named(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function under a name by which its programs are counted; for `jax.jit`."""

    def program(*args: Any) -> Any:
        return function(*args)

    program.__name__ = program.__qualname__ = name
    return program


def compilations(prefix: str) -> int:
    """Programs whose names begin so, compiled (or read from the cache on disk) so far."""
    return sum(n for name, n in _compiled.items() if name.startswith(f"jit({prefix}"))


def all_compilations() -> tuple[int, int]:
    """(programs of any name that were compiled so far, those read from the cache on disk)."""
    read = _compiled[_HIT]
    return sum(_compiled.values()) - 2 * read, read


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
