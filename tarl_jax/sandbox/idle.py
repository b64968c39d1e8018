"""Tasks that an agent passes without doing what they are about.

A benchmark that compares databases passes whoever writes nothing where the right solution writes
nothing; and who hands everything over at once writes nothing either.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from tarl_jax.sandbox.dialogue import TRANSFER
from tarl_jax.sandbox.domain import Domain
from tarl_jax.sandbox.scoring import score
from tarl_jax.types import Task


@dataclasses.dataclass(frozen=True)
class Idle:
    """How many of `tasks` tasks pass when the agent does nothing, or hands over at once.

    *_database: by the database (or the task's checks) alone, as runs are trained; the others by the
    benchmark's whole reward, which may ask for statements too. Assertions that only a reader can
    judge are taken to hold.
    """

    tasks: int
    nothing: int
    nothing_database: int
    handing_over: int
    handing_over_database: int

    def __str__(self) -> str:
        return (
            f"idle: of {self.tasks} tasks {self.nothing_database} are passed by doing nothing and"
            f" {self.handing_over_database} by handing over at once, by what the database shows;"
            f" {self.nothing} and {self.handing_over} by the benchmark's whole reward"
        )


def idle(domain: Domain, tasks: Sequence[Task]) -> Idle:
    """Plays both on every task."""
    over = {"name": TRANSFER, "kwargs": {"summary": "x"}}
    counts = []
    for calls in ([], [over]):
        found = [score(domain, task, calls, assertions=True) for task in tasks]
        counts.append((
            sum(s.reward == 1 for s in found),
            sum(s.database is not False and s.environment is not False for s in found),
        ))
    (nothing, nothing_database), (handing, handing_database) = counts
    return Idle(len(tasks), nothing, nothing_database, handing, handing_database)
