"""TARL's reward: the verifier's verdict and the judge's turn scores, as one number or per turn.

    total = terminal_scale * R
            + min(max((turn_scale * sum_i r_i - minor_scale * n) / T, 0), turn_cap)
            - major_scale * m

R is the verdict (0 or 1), r_i the scores of the turns without the -1s, n the number of minor turns,
m the number of -1s that cost (at most `max_majors`, the first ones; further ones count as 0), and T
either the turns taken or the turns that the task needs. Minor turns take no more than right ones
brought, so that no number of them makes a success worse than a flawed one. Source: arXiv
2509.14480, without minor turns; every constant is a field of `RewardConfig`, because the published
accounts read them differently. Where rollouts calibrate the scores, r_i is what a turn of its kind
is worth (`calibration.py`), which may be negative; the cap then holds on both sides, and minor
turns take no more than what is above 0.
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
    minors: Sequence[bool] | None = None,
) -> Reward:
    """The reward of one trajectory.

    Args:
      success: the verifier's verdict.
      scores: per agent turn -1, 0 or +1; None if the judge abstained, which falls back to the
        terminal reward (abstaining is not a zero).
      expert_turns: turns a faultless clerk needs; T where `denominator` is "expert".
      worth: per turn what takes the place of a 0 or +1; None: the scores.
      minors: per turn whether its 0 is minor; None: none is.
    Raises: ValueError for a score outside -1, 0, +1, or a minor turn of another score than 0.
    """
    terminal = config.terminal_scale * float(success)
    if config.placement == "terminal" or scores is None:
        return Reward(terminal, 0.0, 0.0)
    earned, majors = _parts(scores, expert_turns, config, worth, minors)
    share = np.clip(earned.sum(), -config.turn_cap, config.turn_cap)
    return Reward(terminal, float(share), -float(config.major_scale * majors.sum()))


def turn_rewards(
    success: bool,
    scores: Sequence[int] | None,
    turns: int,
    expert_turns: int,
    config: RewardConfig,
    worth: Sequence[float] | None = None,
    minors: Sequence[bool] | None = None,
) -> Float[np.ndarray, " turns"]:
    """The same reward, each part where it was earned; it adds up to the trajectory's total.

    A right turn gets turn_scale / T and a minor one -minor_scale / T (or less, where all of them
    together would take more than there is) as long as the running sum is within the cap, a -1 that
    costs gets -major_scale, the last turn gets the verdict too.

    Args:
      turns: agent turns of the episode, also where `scores` is None.
    """
    rewards = np.zeros(turns)
    if turns:
        rewards[-1] = config.terminal_scale * float(success)
    if config.placement == "terminal" or scores is None:
        return rewards
    earned, majors = _parts(scores, expert_turns, config, worth, minors)
    running = np.clip(np.cumsum(earned), -config.turn_cap, config.turn_cap)
    return rewards + np.diff(running, prepend=0.0) - config.major_scale * majors


def less_minors(
    good: Float[np.ndarray, " turns"], minors: Float[np.ndarray, " turns"]
) -> Float[np.ndarray, " turns"]:
    """What turns earn less what minor ones cost, both [turns]; the sum is not below 0 for these.

    Where the costs are more than what was earned, each is cut down by the same factor.
    """
    cost, left = minors.sum(), max(good.sum(), 0.0)
    return good - minors * (left / cost if cost > left else 1.0)


def _parts(
    scores: Sequence[int], expert_turns: int, config: RewardConfig,
    worth: Sequence[float] | None, minors: Sequence[bool] | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Per turn what it earns before the cap, and whether its -1 costs, both [turns]."""
    values = np.asarray(scores, np.float64)
    if not np.isin(values, (-1, 0, 1)).all():
        raise ValueError(f"turn scores {list(scores)}: each must be -1, 0 or +1")
    bad = values == -1
    good = np.where(bad, 0.0, values if worth is None else np.asarray(worth, np.float64))
    minor = np.zeros(len(values)) if minors is None else np.asarray(minors, np.float64)
    if minor.shape != values.shape or (minor * values).any():
        raise ValueError(f"turn scores {list(scores)} with minor turns {minors}: only a 0 is minor")
    if config.before_major_only and bad.any():
        good[np.argmax(bad):] = minor[np.argmax(bad):] = 0.0
    turns = max(len(values) if config.denominator == "taken" else expert_turns, 1)
    earned = less_minors(config.turn_scale * good / turns, config.minor_scale * minor / turns)
    return earned, bad & (np.cumsum(bad) <= config.max_majors)
