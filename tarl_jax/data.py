"""Which tasks a step trains on: endless reshuffled passes, addressed by step.

The streams have no state but the step number, so a resumed run continues with the very tasks that
an uninterrupted one would have seen.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tarl_jax.config import MathsConfig
from tarl_jax.types import Task


class TaskStream:
    """An endless sequence of tasks; each pass shuffles all of them anew by `seed`."""

    def __init__(self, tasks: Sequence[Task], seed: int | Sequence[int]):
        self._tasks = tasks
        self._seed = seed if isinstance(seed, Sequence) else [seed]

    def take(self, first: int, count: int) -> list[Task]:
        """`count` tasks from place `first` on (counted from 0)."""
        return [self._at(i) for i in range(first, first + count)]

    def _at(self, index: int) -> Task:
        epoch, place = divmod(index, len(self._tasks))
        order = np.random.default_rng([*self._seed, epoch]).permutation(len(self._tasks))
        return self._tasks[order[place]]


class Mixture:
    """The tasks of every step: `tasks_per_step` places, and the maths problems of the schedule.

    Args:
      tools, maths: what there is to train on; `maths` may be empty where no step wants any.
    Raises: ValueError where a step wants more tasks of a kind than there are.
    """

    def __init__(
        self, tools: Sequence[Task], maths: Sequence[Task], tasks_per_step: int,
        config: MathsConfig, seed: int,
    ):
        if tasks_per_step > len(tools):
            raise ValueError(
                f"rollout.tasks_per_step = {tasks_per_step}, but there are only {len(tools)}"
                " training tasks"
            )
        most = round(max(config.ratio) * tasks_per_step)
        if most > len(maths):
            raise ValueError(
                f"maths.ratio = {config.ratio}: a step takes up to {most} maths problems, but there"
                f" are only {len(maths)} to train on; lower it, raise maths.num_train or"
                " maths.band_problems, or widen the band of maths.min_pass and maths.max_pass"
            )
        self._tools = TaskStream(tools, seed)
        self._maths = TaskStream(maths, [seed, 1])
        self._per_step = tasks_per_step
        self._config = config
        self._seed = seed

    def counts(self, step: int) -> tuple[int, int]:
        """(tool tasks, maths problems) of `step`."""
        config = self._config
        maths = round(float(np.interp(step, config.ratio_steps, config.ratio)) * self._per_step)
        return self._per_step - (maths if config.mode == "replace" else 0), maths

    def tasks(self, step: int) -> list[Task]:
        """The tasks of `step` (counted from 1), the kinds shuffled together."""
        before = [self.counts(s) for s in range(1, step)]
        tools, maths = self.counts(step)
        chosen = self._tools.take(sum(n for n, _ in before), tools)
        if maths:
            chosen += self._maths.take(sum(n for _, n in before), maths)
            order = np.random.default_rng([self._seed, 2, step]).permutation(len(chosen))
            chosen = [chosen[i] for i in order]
        return chosen
