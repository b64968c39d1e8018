"""Errors of a judge on purpose, to measure what they cost."""

from __future__ import annotations

import numpy as np

from tarl_jax.config import NoiseConfig
from tarl_jax.judge.rules import Judgement

_STREAM = 0x6E6F  # apart from whatever else is drawn from an episode's seed


def disturbed(judgement: Judgement, seed: int, noise: NoiseConfig) -> Judgement | None:
    """The judgement with the errors of `NoiseConfig`, or None where it is lost.

    A function of (seed of the episode, number of the turn) alone. A changed score is told in its
    note, and is not minor.
    """
    if _draws(seed, 0)[0] < noise.abstain:
        return None
    scores, notes, minors = [], [], []
    for turn, (score, note, minor) in enumerate(
        zip(judgement.scores, judgement.notes, judgement.minors, strict=True), 1
    ):
        flip, other, optimism = _draws(seed, turn)
        shown = score
        if flip < noise.flip:
            shown = [s for s in (-1, 0, 1) if s != score][int(2 * other)]
        if optimism < noise.optimism:
            shown = 1
        scores.append(shown)
        notes.append(note if shown == score else f"{note} (noise: was {score:+d})")
        minors.append(minor and shown == score)
    return Judgement(scores, notes, minors)


def _draws(seed: int, place: int) -> np.ndarray:
    """Three uniform numbers of a turn (from 1), or of the episode (0)."""
    return np.random.default_rng([_STREAM, seed, place]).random(3)
