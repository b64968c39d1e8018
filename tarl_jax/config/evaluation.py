"""Evaluations before, during and after training."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """spoken: acoustics (chains as in `speech.acoustics`) in which every evaluation plays its tasks
    once more, spoken, beside once in writing; empty: once, as config.speech has it.
    """

    every: int = 20  # steps between evaluations; 0: only before and after training
    tasks: int = 64  # held-out tasks of an evaluation during training
    final_tasks: int = 256  # held-out tasks of the evaluations before and after training
    maths_tasks: int = 0  # held-out maths problems of every evaluation
    trials: int = 4
    temperature: float = 1.0
    bootstrap: int = 2000
    seed: int = 0
    spoken: tuple[str, ...] = ()
