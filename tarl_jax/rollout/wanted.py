"""A program before it is compiled: what is run on what."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax


@dataclasses.dataclass(frozen=True)
class Wanted:
    """A program to compile.

    Attributes:
      name: of its kind. model_sized: whether it runs the model.
      args: shapes that say where they live, arrays of the host, and static numbers.
      at: the shapes that set it apart from others of its kind.
    """

    name: str
    model_sized: bool
    function: Any
    args: tuple[Any, ...]
    at: str = ""

    @property
    def key(self) -> tuple[Any, ...]:
        """What is compiled once."""
        leaves = jax.tree.leaves(self.args)
        return (id(self.function), *(
            (x.shape, str(x.dtype)) if hasattr(x, "shape") else x for x in leaves
        ))

    def lower(self) -> Any:
        return self.function.lower(*self.args)
