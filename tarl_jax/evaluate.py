"""Evaluates a run on held-out tasks: pass^k with intervals, and how the policy behaves.

    python -m tarl_jax.evaluate RUN [--step=N] [--config.eval.trials=8]

takes the newest checkpoint of the run, or that of a step that is kept.

    python -m tarl_jax.evaluate RUN --user=human --audio=file.wav

plays one turn from a file to a policy that hears, and prints what it does about it.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from tarl_jax.config import ConfigError, RunConfig
from tarl_jax.parallel.process import restart_with_tuned_malloc


def main() -> None:
    from tarl_jax.runs.command import run_with_config

    run_with_config(__doc__ or "", _evaluate, _options)


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--step", type=int, default=-1, metavar="N",
                        help="the checkpoint's step; -1 (the default): the newest")
    parser.add_argument("--user", choices=("tasks", "human"), default="tasks",
                        help="who speaks to the policy (default: tasks)")
    parser.add_argument("--audio", metavar="FILE", help="what a human says: a sound file")


def _evaluate(config: RunConfig, parts: Any, given: argparse.Namespace) -> None:
    if (given.user == "human") != bool(given.audio):
        raise ConfigError("--user=human and --audio=FILE belong together: give both or none")
    from tarl_jax.training.parts import checked

    own = checked(parts, config)
    if given.dry_run:
        from tarl_jax.models.hf_config import completed
        from tarl_jax.training.dry_run import show

        if given.audio:
            from tarl_jax.training.recorded_user import heard

            heard(completed(config), Path(given.audio))
        return show(config, own, given.step, evaluates=not given.audio)
    if given.audio:
        from tarl_jax.training.recorded_user import answer

        answer(config, Path(given.audio), given.step, own)
        return
    from tarl_jax.training.evaluation import evaluate_run

    evaluate_run(config, given.step, own)


if __name__ == "__main__":
    restart_with_tuned_malloc("tarl_jax.evaluate")
    main()
