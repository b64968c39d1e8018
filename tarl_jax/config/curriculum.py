"""The knobs of a run's first steps; `tarl_jax.config` joins them to the rest."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any


@dataclasses.dataclass(frozen=True)
class CurriculumConfig:
    """The first steps of a run, which go over into the mix of config.speech and config.maths.

    warmup_steps: how many steps that takes; 0: none. (arXiv 2509.14480 warms its voice policy up
      for 30 steps before it mixes written tasks, maths and spoken tasks; what they hold is open.)
    spoken, maths: the shares that the steps begin with, of tool tasks whose users speak and of
      maths problems (as `maths.ratio`); from there they change linearly.
    clean: the same, of the share of speech that is clean (as `speech.clean`).
    """

    warmup_steps: int = 0
    spoken: float = 0.0
    maths: float = 0.0
    clean: float = 1.0

    def share(self, step: int, first: float, then: float) -> float:
        """The share at a step, counted from 1: it begins with `first` and ends as `then`."""
        if step >= self.warmup_steps:
            return then
        return first + (then - first) * step / self.warmup_steps


def check_curriculum(
    c: CurriculumConfig, has_encoder: bool, require: Callable[[bool, str, Any, str], None]
) -> None:
    """Calls `require` of `config.checks` for all fields; has_encoder: whether the policy hears."""
    where = "curriculum."
    require(c.warmup_steps >= 0, f"{where}warmup_steps", c.warmup_steps, "must be at least 0")
    for name in ("spoken", "maths", "clean"):
        value = getattr(c, name)
        require(0 <= value <= 1, where + name, value, "must be between 0 and 1")
    require(has_encoder or not c.spoken, f"{where}spoken", c.spoken,
            "a policy without an audio encoder hears no speech: set model.audio.encoder_layers, or"
            " leave it 0")
