"""Groups that teach nothing are replaced by groups of further tasks, a bounded number of times.

The idea is DAPO's dynamic sampling (arXiv 2503.14476), which goes on until the batch is full. Tasks
and seeds are functions of (run's seed, step, round), and every process decides by the episodes of
all, so a run that is resumed, or split over processes, is refilled in the same way.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from tarl_jax.models.decoder import Params
from tarl_jax.training.collect import Collector
from tarl_jax.training.credit import assign
from tarl_jax.training.mixture import Mixture
from tarl_jax.training.rewarding import judged, rewarded
from tarl_jax.training.run import Run
from tarl_jax.types import Trajectory


def refilled(
    run: Run, mixture: Mixture, collector: Collector, step: int, params: Params,
    trajectories: Sequence[Trajectory],
) -> tuple[list[Trajectory], dict[str, float]]:
    """The rewarded episodes of a step, its flat groups replaced; and "rollout/refilled_groups".

    In up to `rollout.refills` rounds; a group that is flat after the last one stays. Metrics of how
    the policy does are of the step's own tasks: those that are left in were chosen.
    """
    config, size = run.config, run.config.rollout.group_size
    groups = [list(trajectories[i : i + size]) for i in range(0, len(trajectories), size)]
    places = mixture.plan(step)
    taken = {(one.task.kind, one.task.task_id) for one in places}
    replaced = 0
    for number in range(1, config.rollout.refills + 1):
        flat = np.flatnonzero(flat_groups([t for group in groups for t in group], run))
        if not flat.size:
            break
        planned = mixture.further(step, number, [places[i] for i in flat], taken)
        taken |= {(one.task.kind, one.task.task_id) for one in planned}
        played = judged(run.judge, collector.refill(step, number, params, planned))
        rewarded(played, config, run.learner.table, run.parts.reward)
        for place, i in enumerate(flat):
            groups[i] = played[place * size : (place + 1) * size]
        replaced += len(flat)
    found = [t for group in groups for t in group]
    return found, {"rollout/refilled_groups": float(replaced)}


def flat_groups(trajectories: Sequence[Trajectory], run: Run) -> np.ndarray:
    """Per group whether it teaches nothing: its episodes earned the same, in every part."""
    # What is weighed by the trainer's log-probs later is neither made nor unmade by that.
    config = dataclasses.replace(run.config, rl=dataclasses.replace(run.config.rl, tis_cap=0.0))
    credit = assign(trajectories, config, {}, run.learner.table, {}, run.learner.advantage)
    return np.logical_not(credit.used.reshape(-1, config.rollout.group_size).any(axis=1))
