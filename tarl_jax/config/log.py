"""What a run keeps: checkpoints, episodes, its profile."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    every: int = 10  # steps between checkpoints
    keep: int = 2  # newest checkpoints that stay


@dataclasses.dataclass(frozen=True)
class LogConfig:
    trajectories: int = 16  # training trajectories written per step
    copy_to: str = ""  # gs://…, s3://… or a folder: copied there after each checkpoint; empty: not
    live: bool = True  # the live view, where standard output is a terminal
    trace_step: int = 0  # the step whose profile is written for Perfetto; 0: none
    wandb: str = ""  # the project at Weights & Biases that has a copy of the metrics; empty: none
