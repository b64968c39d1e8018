"""Advantages from rewards: of whole episodes against a baseline, and of tokens by GAE.

All are functions on float64 arrays of the host. P tasks with G episodes each; `valid` is False
where the infrastructure broke an episode, which then gets advantage 0 and enters no mean.
Normalising by "batch" treats each kind of task by itself: rewards of two kinds share no scale.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

_EPSILON = 1e-6  # below this a spread is rounding, not signal


def group_advantages(
    rewards: Float[np.ndarray, "P G"],
    valid: Bool[np.ndarray, "P G"],
    normalise: str,
    kinds: Sequence[str] | None = None,
    scale_of: float = 1.0,
) -> tuple[Float[np.ndarray, "P G"], Bool[np.ndarray, " P"]]:
    """GRPO's advantage (arXiv 2402.03300): (r - mean of the group) / spread.

    Args:
      normalise: the spread: "group" (the group's standard deviation), "batch" (the root mean
        square of all centred rewards of the kind: one scale for all groups, so that a group's tiny
        differences stay tiny), "scale" (`scale_of`, a constant) or "none" (1: Dr. GRPO, arXiv
        2503.20783).
      kinds: per task its kind; None: all are of one.
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
        scale = np.ones((len(rewards), 1))
        for rows in _rows_of_kinds(kinds, len(rewards)):
            scale[rows] = np.sqrt((centred[rows] ** 2).sum() / max(valid[rows].sum(), 1))
    elif normalise in ("none", "scale"):
        scale = np.full((), scale_of if normalise == "scale" else 1.0)
    else:
        raise ValueError(f"normalise = {normalise!r}: choose group, batch, scale or none")
    advantages = np.where(flat[:, None], 0.0, centred / np.maximum(scale, _EPSILON))
    return advantages, flat


def leave_one_out_advantages(
    rewards: Float[np.ndarray, "P G"],
    valid: Bool[np.ndarray, "P G"],
    normalise: str,
    kinds: Sequence[str] | None = None,
    scale_of: float = 1.0,
) -> tuple[Float[np.ndarray, "P G"], Bool[np.ndarray, " P"]]:
    """RLOO's (arXiv 2402.14740): r_i - mean of the group's other rewards, over the spread.

    With n valid episodes that is n / (n - 1) (r_i - mean of all), so arguments and results are
    those of `group_advantages`; the paper has `normalise="none"`.
    """
    advantages, flat = group_advantages(rewards, valid, normalise, kinds, scale_of)
    count = valid.sum(axis=1, keepdims=True)
    return advantages * count / np.maximum(count - 1, 1), flat


def tracked_advantages(
    rewards: Float[np.ndarray, "P G"],
    valid: Bool[np.ndarray, "P G"],
    weights: Float[np.ndarray, " P"],
    baselines: Float[np.ndarray, " P"],
    decay: float,
    normalise: str,
    kinds: Sequence[str] | None = None,
    scale_of: float = 1.0,
) -> tuple[Float[np.ndarray, "P G"], Float[np.ndarray, " P"], Float[np.ndarray, " P"]]:
    """Single-stream Policy Optimization's (arXiv 2509.13232): r - v(task), normalised by the batch.

        v <- v + sum_i (r_i - v) / N',   N' = decay N + n,   N <- N'

    for the n valid episodes of a task, after its advantages were taken from the old v. For rewards
    of 0 and 1 that is the mean of the paper's Beta(a, b) with a = N v, b = N (1 - v). The paper
    sets `decay` by how far the policy has moved since the last visit; here it is a constant.

    Args:
      weights, baselines: N and v of each task; N = 0 where it was never seen (v is then a prior).
      normalise: "batch" (less the mean, over the standard deviation, of the kind), "scale" (over
        the constant `scale_of`) or "none".
    Returns: advantages, and the new weights and baselines.
    """
    rewards = np.asarray(rewards, np.float64)
    surprise = np.where(valid, rewards - baselines[:, None], 0.0)
    seen = valid.sum(axis=1)
    after = np.where(seen > 0, decay * weights + seen, weights)
    moved = baselines + surprise.sum(axis=1) / np.maximum(after, _EPSILON)
    advantages = np.zeros_like(surprise)
    for rows in _rows_of_kinds(kinds, len(rewards)):
        advantages[rows] = standardised(surprise[rows], valid[rows], normalise, scale_of)
    return advantages, after, moved


def gae(
    rewards: Float[np.ndarray, "B S"],
    values: Float[np.ndarray, "B S"],
    sampled: Bool[np.ndarray, "B S"],
    discount: float,
    trace: float,
    turns: Int[np.ndarray, "B S"] | None = None,
) -> tuple[Float[np.ndarray, "B S"], Float[np.ndarray, "B S"]]:
    """Generalised advantage estimation (arXiv 1506.02438) over the agent's own tokens.

        delta_k = r_k + discount V_{k+1} - V_k,   A_k = delta_k + discount trace A_{k+1}

    The chain runs from sampled token to sampled token: k + 1 is the next one, however many forced
    tokens lie between, and past the last one V and A are 0 (the episode has ended). So discounting
    counts what the policy chose, not what the environment said, and no value is asked for in the
    middle of a tool's answer.

    Args:
      values: of the state in which the token at the same place was sampled.
      turns: the turn of each token: discount and trace then count turns, and are 1 within one;
        None: they count tokens.
    Returns: advantages, and returns A + V, which the value model learns; 0 where not sampled.
    """
    advantages = np.zeros(rewards.shape)
    following = np.zeros(len(rewards))  # A of the next sampled token
    ahead = np.zeros(len(rewards))  # V of the next sampled token
    later = np.full(len(rewards), -1)  # its turn
    for s in range(rewards.shape[1] - 1, -1, -1):
        mine = sampled[:, s]
        steps = np.ones(len(rewards)) if turns is None else (later != turns[:, s]).astype(float)
        fades, traces = discount**steps, trace**steps
        now = rewards[:, s] + fades * ahead - values[:, s] + fades * traces * following
        advantages[:, s] = np.where(mine, now, 0.0)
        following = np.where(mine, now, following)
        ahead = np.where(mine, values[:, s], ahead)
        later = later if turns is None else np.where(mine, turns[:, s], later)
    return advantages, np.where(sampled, advantages + values, 0.0)


def standardised(
    x: Float[np.ndarray, ...], valid: Bool[np.ndarray, ...], normalise: str, scale_of: float = 1.0
) -> Float[np.ndarray, ...]:
    """x less its mean, over its standard deviation, both over `valid`; 0 elsewhere.

    "none" leaves x as it is, "scale" divides it by the constant `scale_of`. No spread gives 0.
    """
    if normalise in ("none", "scale"):
        return np.where(valid, x / (scale_of if normalise == "scale" else 1.0), 0.0)
    if normalise != "batch":
        raise ValueError(f"normalise = {normalise!r}: without groups choose batch, scale or none")
    chosen = x[valid]
    spread = chosen.std() if chosen.size else 0.0
    if spread < _EPSILON:
        return np.zeros_like(x)
    return np.where(valid, (x - chosen.mean()) / spread, 0.0)


def truncated_weights(
    trainer: Float[np.ndarray, ...], sampler: Float[np.ndarray, ...], cap: float
) -> Float[np.ndarray, ...]:
    """min(exp(trainer - sampler), cap): importance weights of log-probs, truncated.

    They correct for a sampler that rounds otherwise than the trainer (truncated importance
    sampling, Ionides 2008; for language models Yao et al., "Your Efficient RL Framework Secretly
    Brings You Off-Policy RL Training", 2025). Losses are linear in the size of the advantage, so
    the weight is a factor on it.
    """
    difference = np.asarray(trainer, np.float64) - np.asarray(sampler, np.float64)
    return np.exp(np.minimum(difference, np.log(cap)))


def _rows_of_kinds(kinds: Sequence[str] | None, tasks: int) -> list[np.ndarray]:
    """The rows of each kind."""
    if kinds is None:
        return [np.arange(tasks)]
    if len(kinds) != tasks:
        raise ValueError(f"{len(kinds)} kinds for {tasks} tasks")
    names = np.asarray(kinds)
    return [np.flatnonzero(names == name) for name in np.unique(names)]
