"""Tools that τ²-bench's domains share, where they answer otherwise than τ-bench's."""

from __future__ import annotations

from tarl_jax.sandbox import common_tools
from tarl_jax.sandbox.domain import State, ToolError


def calculate(db: State, expression: str) -> str:
    if not set(expression) <= common_tools.CHARACTERS:
        raise ToolError("Invalid characters in expression")
    return common_tools.calculate(db, expression)
