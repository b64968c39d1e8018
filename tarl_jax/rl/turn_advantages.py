"""Advantages of parts of episodes: stages, turns, states; and of several rewards at once.

Functions on plain lists of one group's episodes, in float64. An *item* is a part of an episode: a
key that says which parts of other episodes it may be compared with, and what it earned. A baseline
may depend on anything but what the part's own tokens chose: then it costs no bias, since the mean
of a constant times the gradient of a log-probability is 0. That is why an episode's own parts never
enter its baseline, and why a key holds only what was decided before the part began.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from jaxtyping import Float

Item = tuple[Hashable, float]  # (key, what it earned)


def leave_one_out_by_key(
    groups: Sequence[Sequence[Sequence[Item]]],
) -> list[list[list[float]]]:
    """Per item what it earned, less the mean of the group's *other* episodes at the same key.

        A_ej = R_ej - mean over the other episodes e' that reached j of R_e'j

    (RLOO's baseline, arXiv 2402.14740, per part.) No division by a spread: a group in which nearly
    all earn the same keeps its small weight. Where no other episode came so far, the baseline is
    the mean of the items of all other groups (0 if there is none): also independent of the item.

    Args:
      groups: [group][episode][item].
    """
    all_values = [np.array([v for e in group for _, v in e]) for group in groups]
    total, count = sum(v.sum() for v in all_values), sum(v.size for v in all_values)
    found = []
    for group, values in zip(groups, all_values, strict=True):
        elsewhere = count - values.size
        fallback = float(total - values.sum()) / elsewhere if elsewhere else 0.0
        # Per key: of each episode the sum of what it earned there and how often.
        sums: dict[Hashable, np.ndarray] = {}
        for e, items in enumerate(group):
            for key, value in items:
                sums.setdefault(key, np.zeros((len(group), 2)))[e] += (value, 1)
        advantages = []
        for e, items in enumerate(group):
            mine = []
            for key, value in items:
                others, times = sums[key].sum(axis=0) - sums[key][e]
                mine.append(value - (others / times if times else fallback))
            advantages.append(mine)
        found.append(advantages)
    return found


def by_state(
    group: Sequence[Sequence[Item]], divide: bool
) -> list[list[float]]:
    """GiGPO's second term (arXiv 2505.10978): turns of a group that were taken in the same state.

        A_S = (G - mean of G over the state's turns) / F,   F = their std, or 1

    G being the discounted return from the turn on. A state that was met once gives 0.

    Args:
      divide: whether F is the std.
    """
    found: dict[Hashable, list[float]] = {}
    for items in group:
        for key, value in items:
            found.setdefault(key, []).append(value)
    moments = {key: (np.mean(of), np.std(of)) for key, of in found.items()}

    def advantage(key: Hashable, value: float) -> float:
        mean, std = moments[key]
        if divide:
            return float((value - mean) / std) if std > 1e-6 else 0.0
        return float(value - mean)

    return [[advantage(*item) for item in items] for items in group]


def returns_to_go(rewards: Float[np.ndarray, " turns"], discount: float) -> np.ndarray:
    """Per turn G_i = r_i + discount G_{i+1}."""
    found, ahead = np.zeros(len(rewards)), 0.0
    for i in range(len(rewards) - 1, -1, -1):
        found[i] = ahead = rewards[i] + discount * ahead
    return found


def decoupled(
    parts: Float[np.ndarray, "G K"], valid: np.ndarray
) -> Float[np.ndarray, " G"]:
    """GDPO's advantage of a group before the batch is normalised (arXiv 2601.05242).

        A = sum over the K rewards of (r_k - mean_k) / std_k

    Each reward is normalised by itself, so that differences of a small one are not lost in the
    spread of a large one. One without a spread gives 0; an invalid episode gets 0.
    """
    chosen = parts[valid]
    if not chosen.size:
        return np.zeros(len(parts))
    std = chosen.std(axis=0)
    scaled = (parts - chosen.mean(axis=0)) / np.where(std > 1e-6, std, np.inf)
    return np.where(valid, scaled.sum(axis=1), 0.0)
