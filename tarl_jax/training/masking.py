"""Which episodes teach nothing: those that broke, and those that were cut off."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from tarl_jax.config import RLConfig
from tarl_jax.types import CUT_OFF, Trajectory


def masked(trajectories: Sequence[Trajectory], config: RLConfig) -> list[Trajectory]:
    """The episodes as credit sees them: one that may not teach has no verdict, as a broken one.

    Time says nothing about what the policy did, so an episode that was cut off for it
    ("max_seconds") never teaches; one that grew too long does, unless `config.mask_truncated`. In
    metrics all of them stay the failures that they are: the given episodes keep their verdicts.
    """
    reasons = CUT_OFF if config.mask_truncated else ("max_seconds",)
    return [
        dataclasses.replace(t, success=None) if t.stop_reason in reasons else t
        for t in trajectories
    ]
