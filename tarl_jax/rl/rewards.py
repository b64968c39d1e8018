"""TARL's reward: the verifier's verdict and the judge's turn scores, as one number or per turn.

    total = terminal_scale * R  +  min(turn_scale * sum_i r_i / T, turn_cap)  -  major_scale * m

R is the verdict (0 or 1), r_i the scores of the turns without the -1s, m the number of -1s that
cost (at most `max_majors`, the first ones; further ones count as 0), and T either the turns taken
or the turns that the task needs. Source: arXiv 2509.14480; every constant is a field of
`RewardConfig`, because the published accounts read them differently. Where rollouts calibrate the
scores, r_i is what a turn of its kind is worth (`calibration.py`), which may be negative; the cap
then holds on both sides.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

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
    success: bool,
    scores: Sequence[int] | None,
    expert_turns: int,
    config: RewardConfig,
    worth: Sequence[float] | None = None,
) -> Reward:
    """The reward of one trajectory.

    Args:
      success: the verifier's verdict.
      scores: per agent turn -1, 0 or +1; None if the judge abstained, which falls back to the
        terminal reward (abstaining is not a zero).
      expert_turns: turns a faultless clerk needs; T where `denominator` is "expert".
      worth: per turn what takes the place of a 0 or +1; None: the scores.
    Raises: ValueError for a score outside -1, 0, +1.
    """
    terminal = config.terminal_scale * float(success)
    if config.placement == "terminal" or scores is None:
        return Reward(terminal, 0.0, 0.0)
    good, majors, divisor = _parts(scores, expert_turns, config, worth)
    share = config.turn_scale * good.sum() / divisor
    cost = config.major_scale * majors.sum()
    return Reward(terminal, float(np.clip(share, -config.turn_cap, config.turn_cap)), -float(cost))


def turn_rewards(
    success: bool,
    scores: Sequence[int] | None,
    turns: int,
    expert_turns: int,
    config: RewardConfig,
    worth: Sequence[float] | None = None,
) -> Float[np.ndarray, " turns"]:
    """The same reward, each part where it was earned; it adds up to the trajectory's total.

    A right turn gets turn_scale / T as long as the running sum is within the cap, a -1 that costs
    gets -major_scale, the last turn gets the verdict too.

    Args:
      turns: agent turns of the episode, also where `scores` is None.
    """
    rewards = np.zeros(turns)
    if turns:
        rewards[-1] = config.terminal_scale * float(success)
    if config.placement == "terminal" or scores is None:
        return rewards
    good, majors, divisor = _parts(scores, expert_turns, config, worth)
    earned = config.turn_scale * np.cumsum(good) / divisor
    earned = np.clip(earned, -config.turn_cap, config.turn_cap)
    return rewards + np.diff(earned, prepend=0.0) - config.major_scale * majors


def _parts(
    scores: Sequence[int], expert_turns: int, config: RewardConfig, worth: Sequence[float] | None
) -> tuple[np.ndarray, np.ndarray, int]:
    """Per turn its r_i and whether its -1 costs, both [turns]; and T."""
    values = np.asarray(scores, np.float64)
    if not np.isin(values, (-1, 0, 1)).all():
        raise ValueError(f"turn scores {list(scores)}: each must be -1, 0 or +1")
    bad = values == -1
    good = np.where(bad, 0.0, values if worth is None else np.asarray(worth, np.float64))
    if config.before_major_only and bad.any():
        good[np.argmax(bad):] = 0.0
    turns = len(values) if config.denominator == "taken" else expert_turns
    return good, bad & (np.cumsum(bad) <= config.max_majors), max(turns, 1)
