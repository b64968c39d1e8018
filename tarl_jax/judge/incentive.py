"""What a judge's scores would teach, found on saved episodes before any training is spent on it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

import numpy as np

from tarl_jax.config import RewardConfig
from tarl_jax.judge.rules import Judgement
from tarl_jax.rl.rewards import trajectory_reward
from tarl_jax.types import Trajectory

_DRAWS = 1000
_RECORD = re.compile(r"(\S+ [^\s:\[]+)")  # table and key at the head of a line of a diff

# The episodes of one task, of one step; None: the judge abstained.
Group = Sequence[tuple[Trajectory, Judgement | None]]


@dataclasses.dataclass(frozen=True)
class Rate:
    """passed of `episodes`."""

    passed: int
    episodes: int

    @property
    def value(self) -> float:
        return self.passed / self.episodes if self.episodes else float("nan")


@dataclasses.dataclass(frozen=True)
class Correlation:
    """A correlation inside groups, with its 95% interval by bootstrap over the groups.

    NaN where nothing varies. groups: of at least two episodes that count.
    """

    value: float
    low: float
    high: float
    groups: int


def pass_rates(groups: Sequence[Group]) -> tuple[Rate, Rate]:
    """(success where no turn has a -1, success where one has), over the judged episodes."""
    judged = [(bool(t.success), -1 in j.scores) for g in groups for t, j in g
              if j is not None and t.success is not None]

    def rate(major: bool) -> Rate:
        mine = [success for success, has in judged if has == major]
        return Rate(sum(mine), len(mine))

    return rate(False), rate(True)


def right_share(trajectory: Trajectory) -> float | None:
    """Of the records that the gold calls change, the share that ended as these leave them.

    A record is a table and a key (an order, a user). It is read from the two diffs: one that the
    episode changed and that is not in `gold_diff` is right; one in `gold_diff` is wrong, unless the
    lines of both diffs are the same, for then the right value is the old one: a write that nobody
    wanted to a record that the gold calls leave alone, which does not count. None where the gold
    calls change nothing.
    """
    changed, wrong = _by_record(trajectory.diff), _by_record(trajectory.gold_diff)
    right = len(changed.keys() - wrong.keys())
    missed = sum(changed.get(record) != lines for record, lines in wrong.items())
    return right / (right + missed) if right + missed else None


def turn_terms(trajectory: Trajectory, judgement: Judgement, config: RewardConfig) -> float:
    """The middle and the major term of the reward: what the judge adds to the verdict."""
    placed = dataclasses.replace(config, placement="trajectory")
    reward = trajectory_reward(
        bool(trajectory.success), judgement.scores, trajectory.task.expert_turns, placed,
        minors=judgement.minors,
    )
    return reward.turns + reward.major


def incentive(
    groups: Sequence[Group], config: RewardConfig, failing: bool = False
) -> Correlation:
    """Correlation of `turn_terms` with `right_share`, both centred in their group.

    Negative, the reward pays those who do less of the task than others in their group; where all of
    a group fail that is all that the reward tells them. Episodes that were not judged, broke, or
    have no `right_share` are left out.

    failing: over groups without a success only.
    """
    moments = []
    for group in groups:
        pairs = [
            (turn_terms(t, j, config), share) for t, j in group
            if j is not None and t.success is not None and (share := right_share(t)) is not None
        ]
        if len(pairs) > 1 and not (failing and any(t.success for t, _ in group)):
            x, y = (np.array(pairs) - np.mean(pairs, axis=0)).T
            moments.append((x @ y, x @ x, y @ y))
    sums = np.array(moments).reshape(-1, 3)
    rng = np.random.default_rng(0)
    picks = rng.integers(0, max(len(sums), 1), (_DRAWS if len(sums) else 0, len(sums)))
    draws = _correlation(sums[picks].sum(axis=1)) if len(sums) else np.array([np.nan])
    draws = draws[np.isfinite(draws)]
    low, high = np.percentile(draws, (2.5, 97.5)) if draws.size else (np.nan, np.nan)
    value = float(_correlation(sums.sum(axis=0)[None])[0])
    return Correlation(value, float(low), float(high), len(sums))


def _correlation(moments: np.ndarray) -> np.ndarray:
    """[n] of sums [n, 3] of xy, xx, yy; NaN where one does not vary."""
    xy, xx, yy = moments.T
    scale = np.sqrt(xx * yy)
    return np.divide(xy, scale, out=np.full(len(xy), np.nan), where=scale > 1e-12)


def _by_record(lines: Sequence[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in lines:
        match = _RECORD.match(line)
        if match is None:
            raise ValueError(f"a line of a diff names no record: {line!r}")
        found.setdefault(match[1], []).append(line)
    return found
