"""Which tasks a step trains on: an endless reshuffled pass, addressed by step.

The stream has no state but the step number, so a resumed run continues with the very tasks that
an uninterrupted one would have seen.
"""

from __future__ import annotations

import numpy as np

from tarl_jax.types import Task


class TaskStream:
    """`tasks_per_step` tasks for every step; each pass shuffles all tasks anew by `seed`."""

    def __init__(self, tasks: list[Task], tasks_per_step: int, seed: int):
        if tasks_per_step > len(tasks):
            raise ValueError(
                f"rollout.tasks_per_step = {tasks_per_step}, but there are only {len(tasks)}"
                " training tasks"
            )
        self._tasks = tasks
        self._per_step = tasks_per_step
        self._seed = seed

    def tasks(self, step: int) -> list[Task]:
        """The tasks of `step` (counted from 1)."""
        first = (step - 1) * self._per_step
        return [self._at(i) for i in range(first, first + self._per_step)]

    def _at(self, index: int) -> Task:
        epoch, place = divmod(index, len(self._tasks))
        order = np.random.default_rng([self._seed, epoch]).permutation(len(self._tasks))
        return self._tasks[order[place]]
