"""From finished episodes to rewarded ones: the judge's scores, the reward, their metrics."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from tarl_jax.config import RunConfig
from tarl_jax.judge.service import Judge
from tarl_jax.parallel import hosts, launches
from tarl_jax.training.credit import Table, judge_counts, reward
from tarl_jax.training.evaluation import (
    behaviour,
    by_kind,
    maths_metrics,
    modalities,
    user_faults,
)
from tarl_jax.training.parts import RewardOf
from tarl_jax.types import Trajectory

PARTS = ("terminal", "turns", "major")


def judged(judge: Judge, played: Sequence[Trajectory]) -> list[Trajectory]:
    """Those of all processes, each judged where it was played."""
    with launches.given():
        verdicts = judge.judge_all(played)
    for t, verdict in zip(played, verdicts, strict=True):
        if verdict:
            t.turn_scores, t.judge_notes = verdict.scores, verdict.notes
            t.turn_minors = verdict.minors
    judge.check_assertions(played)
    judge.check_users(played)
    return hosts.joined(played, Trajectory)


def compare_alike(trajectories: Sequence[Trajectory], config: RunConfig) -> None:
    """Where the judge abstained on an episode of a group, none of its scores count (in place).

    An abstained failure would earn more than a judged one, an abstained success less, for nothing
    that either did. With `reward.abstained = "member"` the others keep theirs, and it is left out.
    """
    size = config.rollout.group_size
    for begin in range(0, len(trajectories), size):
        group = trajectories[begin : begin + size]
        whole = [t for t in group if t.success is not None]
        alike = config.reward.abstained == "member" or all(
            t.turn_scores is not None for t in whole
        )
        for t in group:
            t.counted = alike


def rewarded(
    trajectories: Sequence[Trajectory], config: RunConfig, table: Table | None,
    own: RewardOf | None,
) -> dict[str, float]:
    """Gives each its reward, in place; returns metrics, those of maths problems apart."""
    compare_alike(trajectories, config)
    for t in trajectories:
        earned = reward(t, config, table, own)
        t.reward, t.reward_parts = earned.total, dataclasses.asdict(earned)
    trajectories, maths = by_kind(trajectories)
    values = maths_metrics(maths, len(trajectories))
    if not trajectories:
        return values
    major = np.array([-1 in (t.turn_scores or ()) for t in trajectories])
    judged = np.array([t.turn_scores is not None for t in trajectories])
    success = np.array([bool(t.success) for t in trajectories])
    return values | {f"rollout/{k}": v for k, v in behaviour(trajectories).items()} | modalities(
        trajectories
    ) | {
        f"reward/{part}": float(np.mean([t.reward_parts[part] for t in trajectories]))
        for part in PARTS
    } | {
        "reward/mean": float(np.mean([t.reward for t in trajectories])),
        "train/pass_rate": float(np.mean(success)),
    } | user_faults(trajectories) | ({} if not (judged.any() or judge_counts(config)) else {
        "judge/abstained": float(np.mean(~judged)),
    }) | ({} if not judged.any() else {
        # Where nobody judged, nobody saw no deviation.
        "train/clean_pass": float(np.mean((success & ~major)[judged])),
        "judge/major_share": float(np.mean(major[judged])),
    })
