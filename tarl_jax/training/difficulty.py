"""Maths problems of medium difficulty: those that the starting policy solves sometimes.

A problem that every episode of a group solves, or none, teaches nothing. What was measured is kept
in the run directory, `maths_pass_rates.json`, so that a resumed run trains on the same problems.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from tarl_jax.config import InputError, MathsConfig
from tarl_jax.config.plain import read_json
from tarl_jax.models.decoder import Params
from tarl_jax.parallel import hosts
from tarl_jax.rollout.environment import AnyEngine, Environment
from tarl_jax.runs.directory import write_json
from tarl_jax.types import Task

FILE = "maths_pass_rates.json"


def medium_problems(
    engine: AnyEngine,
    params: Params | None,
    env: Environment,
    run_dir: Path,
    progress: Callable[[int, int], None] | None = None,
) -> list[Task]:
    """The run's maths problems to train on; all of them where the band is from 0 to 1.

    Args:
      params: the starting policy; None once training has changed it.
    Raises: ValueError where no problem lies in the band, or where nothing was measured and there
      is no starting policy any more.
    """
    config = env.config.maths
    if env.maths is None or not max(config.ratio):
        return []
    problems = env.maths.train_tasks
    if (config.min_pass, config.max_pass) == (0.0, 1.0):
        return problems
    problems, path = problems[: config.band_problems], run_dir / FILE
    if hosts.from_first(path.is_file):
        rates = read_json(path, dict)
    elif params is not None:
        rates = _pass_rates(engine, params, env, problems, progress)
        hosts.from_first(lambda: write_json(path, rates))
    else:
        raise InputError(f"{path}: is gone, and the policy that it was measured with has changed;"
                         " put it back, or start a new run")
    return in_band(problems, rates, config)


def in_band(problems: list[Task], rates: dict[str, float], config: MathsConfig) -> list[Task]:
    """The problems whose pass rate (by task id) lies in the band, its ends included."""
    kept = [p for p in problems if config.min_pass <= rates[p.task_id] <= config.max_pass]
    if not kept:
        values = [rates[p.task_id] for p in problems]
        raise InputError(
            f"none of {len(problems)} maths problems is solved between maths.min_pass ="
            f" {config.min_pass} and maths.max_pass = {config.max_pass} of the time: the starting"
            f" policy solves {np.mean(np.equal(values, 0)):.0%} of them never and"
            f" {np.mean(np.equal(values, 1)):.0%} always; change the band, maths.levels or the file"
        )
    return kept


def _pass_rates(
    engine: AnyEngine,
    params: Params,
    env: Environment,
    problems: list[Task],
    progress: Callable[[int, int], None] | None,
) -> dict[str, float]:
    trials = env.config.maths.band_trials
    episodes = [
        env.episode(p, "maths-band", trial)
        for p in hosts.share(problems) for trial in range(trials)
    ]
    engine.run(params, episodes, env.config.rollout.temperature, progress)
    passed = hosts.joined([bool(e.trajectory().success) for e in episodes])
    rates = np.reshape(passed, (-1, trials)).mean(axis=1).tolist()
    return dict(zip((p.task_id for p in problems), rates, strict=True))
