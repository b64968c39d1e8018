"""What training changed, with intervals: both evaluations play the same tasks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tarl_jax.config.plain import read_json
from tarl_jax.runs.directory import write_json
from tarl_jax.training.evaluation import MAX_K, bootstrap_interval, pass_hat_k
from tarl_jax.types import Trajectory

FILE = "per_task.json"  # {"base" or "final": {metric: {task_id: value}}}

PerTask = dict[str, dict[str, float]]


def per_task(trajectories: Sequence[Trajectory], trials: int) -> PerTask:
    """The metrics of an evaluation that have intervals, for each of its tasks.

    Args:
      trajectories: of tool tasks, the trials of a task side by side.
    Returns: by metric and task id. Shares of judged episodes lack the tasks that nobody judged.
    """
    found: PerTask = {}
    for first in range(0, len(trajectories), trials):
        of = trajectories[first : first + trials]
        task = of[0].task.task_id
        passed = np.array([sum(bool(t.success) for t in of)])
        for k in range(1, min(MAX_K, trials) + 1):
            rate = float(pass_hat_k(passed, trials, k)[0])
            found.setdefault(f"eval/pass^{k}", {})[task] = rate
        major = [-1 in (t.turn_scores or ()) for t in of]
        judged = [t.turn_scores is not None for t in of]
        for name, holds, counts in (
            ("clean_pass", [bool(t.success) and not m for t, m in zip(of, major, strict=True)],
             [j or t.success is None for j, t in zip(judged, of, strict=True)]),
            ("major_share", major, judged),
        ):
            kept = [h for h, c in zip(holds, counts, strict=True) if c]
            if kept and any(judged):
                found.setdefault(f"eval/{name}", {})[task] = float(np.mean(kept))
    return found


def keep(run_dir: Path, kind: str, values: PerTask) -> None:
    """Adds the values of an evaluation to the run's file. Raises WriteError."""
    path = run_dir / FILE
    known = read_json(path, dict) if path.is_file() else {}
    write_json(path, {**known, kind: values})


def difference(run_dir: Path, draws: int, seed: int) -> dict[str, float]:
    """Trained minus base, the mean over the tasks that both played, with 95% intervals.

    The interval is by bootstrap over tasks, each with its own difference.
    Returns: the metrics, with "_low" and "_high"; {} where one of the evaluations is not there.
    """
    path = run_dir / FILE
    known = read_json(path, dict) if path.is_file() else {}
    base, final = (known.get(kind, {}) for kind in ("base", "final"))
    found: dict[str, float] = {}
    for name in base.keys() & final.keys():
        tasks = [task for task in base[name] if task in final[name]]
        if tasks:
            change = np.array([final[name][task] - base[name][task] for task in tasks])
            low, high = bootstrap_interval(change, draws, np.random.default_rng([seed, 2]))
            found |= {name: float(change.mean()), f"{name}_low": low, f"{name}_high": high}
    return found
