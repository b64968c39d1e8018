"""Which episodes teach nothing: those that broke, were cut off, or had a user at fault."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from tarl_jax.config import RunConfig
from tarl_jax.types import CUT_OFF, Trajectory


def masked(trajectories: Sequence[Trajectory], config: RunConfig) -> list[Trajectory]:
    """The episodes as credit sees them: one that may not teach has no verdict, as a broken one.

    Time says nothing about what the policy did, so an episode that was cut off for it
    ("max_seconds") never teaches; one that grew too long does, unless `rl.mask_truncated`. Nor is
    what the user did wrong the policy's doing (`user.leave_out_faults`). Where all hangs on
    assertions, and who was asked could not say whether they hold, nobody knows the verdict. In
    metrics all of them stay the failures that they are: the given episodes keep their verdicts.
    """
    reasons = CUT_OFF if config.rl.mask_truncated else ("max_seconds",)

    def teaches_nothing(t: Trajectory) -> bool:
        by_user = config.user.leave_out_faults and bool(t.user_faults)
        return by_user or t.stop_reason in reasons or t.assertions_met == []

    return [dataclasses.replace(t, success=None) if teaches_nothing(t) else t
            for t in trajectories]
