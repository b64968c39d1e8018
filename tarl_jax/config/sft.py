"""Supervised fine-tuning of a policy before reinforcement learning."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any


@dataclasses.dataclass(frozen=True)
class SFTConfig:
    """Imitation by AdamW on the run's mesh, of all weights or of adapters, as the run trains.

    It begins with the policy that the run begins with, a pretrained checkpoint or a warm start.

    steps: optimiser steps; 0: none.
    file: JSON lines of dialogues, each {"messages": […], "tools": […]} as chat APIs have them
      (docs/sft.md); empty: the faultless clerk's, in the run's domain or else the shop.
    episodes: of the clerk; a file is taken whole.
    batch_tokens: the dialogues of a step have at least as many together.
    learning_rate: reached after a twentieth of the steps.
    """

    steps: int = 0
    file: str = ""
    episodes: int = 2000
    batch_tokens: int = 65_536
    learning_rate: float = 1e-5


def check_sft(c: SFTConfig, require: Callable[[bool, str, Any, str], None]) -> None:
    """Calls `require` of `config.checks` for all fields."""
    require(c.steps >= 0, "sft.steps", c.steps, "must be at least 0")
    for name in ("episodes", "batch_tokens"):
        value = getattr(c, name)
        require(value > 0, f"sft.{name}", value, "must be at least 1")
    require(c.learning_rate > 0, "sft.learning_rate", c.learning_rate, "must be above 0")
    require(c.steps > 0 or not c.file, "sft.file", c.file,
            "sft.steps = 0 learns nothing from it: raise that, or leave it out")
