"""Advantages of whole trajectories from the rewards of their group."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float

_EPSILON = 1e-6  # below this a spread is rounding, not signal


def group_advantages(
    rewards: Float[np.ndarray, "P G"], valid: Bool[np.ndarray, "P G"], normalise: str
) -> tuple[Float[np.ndarray, "P G"], Bool[np.ndarray, " P"]]:
    """GRPO's advantage (arXiv 2402.03300): (r - mean of the group) / spread.

    Args:
      rewards: P tasks with G episodes each.
      valid: False where the infrastructure broke the episode; such an episode gets advantage 0
        and does not enter the mean.
      normalise: the spread: "group" (the group's standard deviation), "batch" (the root mean
        square of all centred rewards: one scale for all groups, so that a group's tiny
        differences stay tiny), or "none" (1: Dr. GRPO, arXiv 2503.20783).
    Returns: advantages, and per group whether all its rewards are the same (nothing to learn).
    """
    rewards = np.asarray(rewards, np.float64)
    count = np.maximum(valid.sum(axis=1, keepdims=True), 1)
    mean = np.where(valid, rewards, 0).sum(axis=1, keepdims=True) / count
    centred = np.where(valid, rewards - mean, 0.0)
    spread = np.sqrt((centred**2).sum(axis=1, keepdims=True) / count)
    flat = spread[:, 0] < _EPSILON
    if normalise == "group":
        scale = spread
    elif normalise == "batch":
        scale = np.sqrt((centred**2).sum() / max(valid.sum(), 1))
    elif normalise == "none":
        scale = np.ones(())
    else:
        raise ValueError(f"normalise = {normalise!r}: choose group, batch or none")
    advantages = np.where(flat[:, None], 0.0, centred / np.maximum(scale, _EPSILON))
    return advantages, flat
