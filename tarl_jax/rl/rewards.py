"""TARL's reward: the verifier's verdict and the judge's turn scores as one number.

    total = terminal_scale * R  +  min(turn_scale * sum_i r_i / T, turn_cap)  -  major_scale * m

R is the verdict (0 or 1), r_i the scores of the turns without the -1s, m the number of -1s that
cost (at most `max_majors`, the first ones; further ones count as 0), and T either the turns taken
or the turns that the task needs. Source: arXiv 2509.14480; every constant is a field of
`RewardConfig`, because the published accounts read them differently.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from tarl_jax.config import RewardConfig


@dataclasses.dataclass(frozen=True)
class Reward:
    """The parts add up to `total`."""

    terminal: float
    turns: float
    major: float

    @property
    def total(self) -> float:
        return self.terminal + self.turns + self.major


def trajectory_reward(
    success: bool, scores: Sequence[int] | None, expert_turns: int, config: RewardConfig
) -> Reward:
    """The reward of one trajectory.

    Args:
      success: the verifier's verdict.
      scores: per agent turn -1, 0 or +1; None if the judge abstained, which falls back to the
        terminal reward (abstaining is not a zero).
      expert_turns: turns a faultless clerk needs; T where `denominator` is "expert".
    Raises: ValueError for a score outside -1, 0, +1.
    """
    terminal = config.terminal_scale * float(success)
    if config.placement == "terminal" or scores is None:
        return Reward(terminal, 0.0, 0.0)
    values = np.asarray(scores, np.float64)
    if not np.isin(values, (-1, 0, 1)).all():
        raise ValueError(f"turn scores {list(scores)}: each must be -1, 0 or +1")
    majors = np.flatnonzero(values == -1)
    good = np.maximum(values, 0)
    if config.before_major_only and majors.size:
        good = good[: majors[0]]
    turns = len(values) if config.denominator == "taken" else expert_turns
    share = config.turn_scale * good.sum() / max(turns, 1)
    cost = config.major_scale * min(majors.size, config.max_majors)
    return Reward(terminal, float(min(share, config.turn_cap)), -float(cost))
