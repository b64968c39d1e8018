"""Which tasks a step trains on: endless reshuffled passes, addressed by step.

The streams have no state but the step number, so a resumed run continues with the very tasks that
an uninterrupted one would have seen.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence, Set

import numpy as np

from tarl_jax.config import CurriculumConfig, InputError, MathsConfig, SpeechConfig
from tarl_jax.types import Task


class TaskStream:
    """An endless sequence of tasks; each pass shuffles all of them anew by `seed`."""

    def __init__(self, tasks: Sequence[Task], seed: int | Sequence[int]):
        self._tasks = tasks
        self._seed = seed if isinstance(seed, Sequence) else [seed]

    def take(self, first: int, count: int) -> list[Task]:
        """`count` tasks from place `first` on (counted from 0)."""
        return [self._at(i) for i in range(first, first + count)]

    def shuffled(self, seed: Sequence[int]) -> list[Task]:
        """All of them, in an order of `seed` alone."""
        order = np.random.default_rng(seed).permutation(len(self._tasks))
        return [self._tasks[i] for i in order]

    def _at(self, index: int) -> Task:
        epoch, place = divmod(index, len(self._tasks))
        order = np.random.default_rng([*self._seed, epoch]).permutation(len(self._tasks))
        return self._tasks[order[place]]


@dataclasses.dataclass(frozen=True)
class Planned:
    """A task of a step, and how much its user speaks (as `speech.share`), how much of it clean."""

    task: Task
    spoken: float
    clean: float = 0.0


class Mixture:
    """The tasks of every step: `tasks_per_step` places, the maths problems of the schedule among
    them, and of the tool tasks those that are spoken.

    Args:
      tools, maths: what there is to train on; `maths` may be empty where no step wants any.
    Raises: ValueError where a step wants more tasks of a kind than there are.
    """

    def __init__(
        self, tools: Sequence[Task], maths: Sequence[Task], tasks_per_step: int,
        config: MathsConfig, seed: int, speech: SpeechConfig | None = None,
        curriculum: CurriculumConfig | None = None,
    ):
        self._curriculum = curriculum or CurriculumConfig()
        self._speech = speech or SpeechConfig()
        if tasks_per_step > len(tools):
            raise InputError(
                f"rollout.tasks_per_step = {tasks_per_step}, but there are only {len(tools)}"
                " training tasks"
            )
        first = self._curriculum.maths if self._curriculum.warmup_steps else 0.0
        most = round(max(*config.ratio, first) * tasks_per_step)
        if most > len(maths):
            raise InputError(
                f"maths.ratio = {config.ratio}, curriculum.maths = {first}: a step takes up to"
                f" {most} maths problems, but there are only {len(maths)} to train on; lower it,"
                " raise maths.num_train or maths.band_problems, or widen the band of maths.min_pass"
                " and maths.max_pass"
            )
        self._tools = TaskStream(tools, seed)
        self._maths = TaskStream(maths, [seed, 1])
        self._per_step = tasks_per_step
        self._config = config
        self._seed = seed

    def counts(self, step: int) -> tuple[int, int]:
        """(tool tasks, maths problems) of `step`."""
        config = self._config
        ratio = float(np.interp(step, config.ratio_steps, config.ratio))
        ratio = self._curriculum.share(step, self._curriculum.maths, ratio)
        maths = round(ratio * self._per_step)
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

    def spoken(self, step: int) -> float:
        """The share of what the users of tool tasks say that is spoken."""
        return self._curriculum.share(step, self._curriculum.spoken, self._speech.share)

    def clean(self, step: int) -> float:
        """The share of what is spoken that is clean."""
        return self._curriculum.share(step, self._curriculum.clean, self._speech.clean)

    def plan(self, step: int) -> list[Planned]:
        """The tasks of `step`, and who of their users speaks.

        Where users speak by the episode, so many speak in all of their turns, and the others write;
        else all of them speak in so many of their turns.
        """
        tasks, share, clean = self.tasks(step), self.spoken(step), self.clean(step)
        if self._speech.per == "turn":
            return [Planned(task, share, clean) for task in tasks]
        tools = [i for i, task in enumerate(tasks) if task.kind == "tool"]
        order = np.random.default_rng([self._seed, 3, step]).permutation(len(tools))
        speak = {tools[i] for i in order[: round(share * len(tools))]}
        return [Planned(task, float(i in speak), clean) for i, task in enumerate(tasks)]

    def further(
        self, step: int, number: int, places: Sequence[Planned], taken: Set[tuple[str, str]]
    ) -> list[Planned]:
        """Other tasks of the same kinds for places of `step`, in a round of refilling.

        Args:
          taken: (kind, id) of those the step has had; they come again once no others are left.
        """
        pools = {}
        for kind, stream in (("tool", self._tools), ("maths", self._maths)):
            tasks = stream.shuffled([self._seed, 5, step, number, int(kind == "maths")])
            pools[kind] = itertools.cycle(
                sorted(tasks, key=lambda task: (task.kind, task.task_id) in taken)
            )
        return [
            dataclasses.replace(one, task=next(pools[one.task.kind])) for one in places
        ]

    def state(self, step: int) -> dict[str, float]:
        """Where the schedule stands after `step`, for its checkpoint.

        The tasks of each kind that were taken so far, and the shares of that step.
        """
        counts = [self.counts(s) for s in range(1, step + 1)]
        tools, maths = counts[-1] if counts else (0, 0)
        clean = {"clean": self.clean(step) if step else 1.0} if self._speech.acoustics else {}
        return clean | {
            "tools_taken": sum(n for n, _ in counts),
            "maths_taken": sum(n for _, n in counts),
            "maths": maths / max(tools + maths, 1),
            "spoken": self.spoken(step) if step else 0.0,
        }
