"""Dual control: what a domain is told of users who have tools of their own (τ²-bench, 2506.07982).

Agent and user act on one `State`. Some of its tables are the user's (its phone, where it is); after
each call that did not raise, `sync` carries over what either side has changed for the other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Side = Literal["assistant", "user"]
SIDES: tuple[Side, ...] = ("assistant", "user")


@dataclass(frozen=True)
class UserSide:
    """The user's half of a domain. States and tools are those of `domain.py`.

    tools: the user's, by name.
    tables: those that are the user's database; the agent's tools read none of them.
    sync: brings both halves into step. It may raise `ToolError`, after which its writes stay.
    functions: per side what a task may call beside the tools to make its start, such as to break
      the phone.
    checks: per side the assertions that a task may make on its end; each tells whether it holds.
    """

    tools: Mapping[str, Any]
    tables: tuple[str, ...]
    sync: Callable[[Any], None]
    functions: Mapping[Side, dict[str, Callable[..., Any]]]
    checks: Mapping[Side, dict[str, Callable[..., Any]]]
