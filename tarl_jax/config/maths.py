"""The knobs of the maths problems, and their check; `tarl_jax.config` joins them to the rest."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import Any


@dataclasses.dataclass(frozen=True)
class MathsConfig:
    """Maths problems among the tool tasks (arXiv 2509.14480); off while every ratio is 0.

    ratio: maths problems per step as a share of rollout.tasks_per_step, at the steps of
      `ratio_steps`; linear between them, constant outside.
    mode: "replace": they take the places of tool tasks; "add": they come on top.
    file: JSON list or JSON lines with "problem" and "answer", as DeepScaleR's; empty: made from
      the seed.
    tfds: in place of a file: prepared datasets of tensorflow-datasets, each NAME or NAME@SPLIT.
    tfds_features: what the problem and the answer are called there.
    levels: share of the problems made by level, 1 to 5.
    min_pass, max_pass: only problems that the starting policy solves this often are trained on,
      measured on the first `band_problems` of them with `band_trials` episodes each; 0 and 1: all.
    demonstrations: share of the warm start's demonstrations that are worked problems.
    """

    ratio: tuple[float, ...] = (0.0,)
    ratio_steps: tuple[float, ...] = (0.0,)  # rising; one for each of the ratios
    mode: str = "replace"
    file: str = ""
    tfds: tuple[str, ...] = ()
    tfds_features: tuple[str, ...] = ("problem", "answer")
    seed: int = 0  # of the problems made
    num_train: int = 2000  # at most, of a file
    num_held_out: int = 128  # at most, of a file; evaluations draw on them
    levels: tuple[float, ...] = (0.2, 0.2, 0.2, 0.2, 0.2)
    min_pass: float = 0.0
    max_pass: float = 1.0
    band_problems: int = 512  # tried by the starting policy
    band_trials: int = 8  # episodes of each
    demonstrations: float = 0.0


def check_maths(c: MathsConfig, require: Callable[[bool, str, Any, str], None]) -> None:
    """Calls `require(holds, field, value, remedy)` for every condition."""
    require(c.mode in ("replace", "add"), "maths.mode", c.mode, "choose one of replace, add")
    limit = 1.0 if c.mode == "replace" else math.inf
    require(bool(c.ratio) and all(0 <= r <= limit and r < math.inf for r in c.ratio),
            "maths.ratio", c.ratio, "give at least one share, each at least 0"
            + (" and, where maths.mode is replace, at most 1" if limit == 1 else ""))
    rising = all(a < b for a, b in itertools.pairwise(c.ratio_steps))
    require(len(c.ratio_steps) == len(c.ratio) and rising, "maths.ratio_steps", c.ratio_steps,
            f"give a rising step for each of maths.ratio = {c.ratio}")
    require(not (c.file and c.tfds), "maths.tfds", c.tfds,
            f"maths.file = {c.file!r} names problems too: give one of the two")
    require(len(c.tfds_features) == 2, "maths.tfds_features", c.tfds_features,
            "give two names, of the problem and of the answer")
    for where in ("num_train", "num_held_out", "band_problems", "band_trials"):
        value = getattr(c, where)
        require(value > 0, f"maths.{where}", value, "must be at least 1")
    require(len(c.levels) == 5 and min(c.levels) >= 0 and abs(sum(c.levels) - 1) < 1e-6,
            "maths.levels", c.levels, "give five shares, of level 1 to 5, that sum to 1")
    require(0 <= c.min_pass < c.max_pass <= 1, "maths.min_pass", c.min_pass,
            f"must be at least 0 and below maths.max_pass = {c.max_pass}, which is at most 1")
    require(0 <= c.demonstrations < 1, "maths.demonstrations", c.demonstrations,
            "must be at least 0 and below 1")
