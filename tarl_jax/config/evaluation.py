"""Evaluations before, during and after training."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """Evaluations; what they draw is apart from training's.

    before: whether the starting policy is evaluated.
    temperature: of their episodes; 0: the likeliest tokens; -1: the checkpoint's own.
    top_k, top_p, min_p: as in `rollout`, -1 too.
    split: of published data, the only one that is held out, such as "test"; empty: "test"
      of τ²-bench's, all but "train" of τ-bench's.
    domain, data: where evaluations play, if not where training does: as in `sandbox`. A domain
      alone is looked for in `sandbox.data`, or is an embedded one.
    spoken: acoustics (chains as in `speech.acoustics`) in which every evaluation plays its tasks
      once more, spoken, beside once in writing; empty: once, as config.speech has it. "CHAIN@WHO"
      says who speaks: of `speech.voices` ("en,en-us"), an engine, or "held_out".
    """

    every: int = 20  # steps between evaluations; 0: only before and after training
    before: bool = True
    tasks: int = 64  # held-out tasks of an evaluation during training
    final_tasks: int = 256  # held-out tasks of the evaluations before and after training
    maths_tasks: int = 0  # held-out maths problems of every evaluation
    trials: int = 4  # episodes of each task
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    split: str = ""
    domain: str = ""
    data: str = ""
    bootstrap: int = 2000  # draws of tasks behind an interval
    seed: int = 0  # of their episodes, and of the intervals
    spoken: tuple[str, ...] = ()


def check_evaluation(c: EvalConfig, require: Callable[[bool, str, Any, str], None]) -> None:
    """Asks `require` of `config.checks` about how the group `eval` draws."""
    for name, highest in (
        ("temperature", float("inf")), ("top_k", float("inf")), ("top_p", 1), ("min_p", 1),
    ):
        value, at_most = getattr(c, name), "" if highest > 1 else f" and at most {highest}"
        require(0 <= value <= highest or value == -1, f"eval.{name}", value,
                f"must be at least 0{at_most}, or -1: the checkpoint's own")
    require(c.top_p != 0, "eval.top_p", c.top_p, "must be above 0: for the likeliest token alone"
            " set eval.temperature = 0")
