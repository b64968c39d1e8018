"""Puts a warm start into the package: the embedded default's, or that of a run.

    python -m tarl_jax.training.ship_base [--workdir=DIR]
    python -m tarl_jax.main --config=configs/omni_noisy.py --workdir=RUN --config.rl.steps=0
    python -m tarl_jax.training.ship_base --run=RUN

Every run whose warm start the package keeps begins at that policy, so that the first command trains
within a minute and figures can be compared. Without --run the embedded default's is made, which
takes about five minutes on two cores. With it, the policy that RUN began at becomes the one of its
config's name; RUN was evaluated before it trained (`eval.before`), and is the run that made it, not
one that found it in the cache. Beside a policy (`warm_start/NAME.npz`, half precision) stands how
it was made (NAME.json).
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from tarl_jax.parallel.process import exit_status, restart_with_tuned_malloc

COMMAND = "python -m tarl_jax.training.ship_base"


def make(workdir: Path) -> None:
    """Runs the embedded default's warm start anew and evaluates it on held-out tasks."""
    from tarl_jax.config import RunConfig
    from tarl_jax.training.train import train

    default = RunConfig()
    train(dataclasses.replace(
        default, name="default", workdir=str(workdir),
        warm_start=dataclasses.replace(default.warm_start, make=True),
        rl=dataclasses.replace(default.rl, steps=0),
    ))


def ship(run: Path, command: str) -> None:
    """Keeps what the run began at.

    Raises InputError where that is not a warm start alone, or was not evaluated.
    """
    from tarl_jax.config import InputError, from_config_dict
    from tarl_jax.rollout.environment import Environment
    from tarl_jax.runs.checkpoint import Checkpoints
    from tarl_jax.runs.directory import read_run
    from tarl_jax.training.policy import make_updater, restore
    from tarl_jax.warm_start.recipe import warm_start_digest
    from tarl_jax.warm_start.shipped import ship_policy

    values, parts = read_run(run)
    config = dataclasses.replace(from_config_dict(values), workdir=str(run))
    other = {
        "parts of its own": parts, "config.sft.steps": config.sft.steps,
        "config.model.pretrained": config.model.pretrained,
        "config.model.lora.rank": config.model.lora.rank,
        "no config.warm_start.steps": not config.warm_start.steps,
    }
    if found := [name for name, value in other.items() if value]:
        raise InputError(f"{run}: began at more than a warm start ({', '.join(found)}), which its"
                         " digest does not name; keep one of a run without")
    summary = run / "summary.json"
    figures = json.loads(summary.read_text("utf-8")).get("base", {}) if summary.exists() else {}
    if "eval/pass^1" not in figures:
        raise InputError(f"{summary}: says nothing of the policy that the run began at: end a run"
                         " with --config.eval.before=True")
    checkpoints = Checkpoints(run, config.checkpoint)
    env = Environment.from_config(config)
    state = restore(config, env, make_updater(config, env), checkpoints, 0)
    checkpoints.close()
    versions = json.loads((run / "versions.json").read_text("utf-8"))[0]
    path = ship_policy(config.name, state.policy, {
        "digest": warm_start_digest(config, env),
        "command": command,
        "date": datetime.date.today().isoformat(),
        "commit": versions["commit"],
        "packages": versions["packages"],
        "before_rounding": {
            name.removeprefix("eval/"): value for name, value in figures.items()
            if name.endswith(("pass^1", "pass^4", "clean_pass", "/entropy", "pass_variance"))
        },
    })
    print(f"{path}: {path.stat().st_size / 2**20:.1f} MiB")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog=COMMAND, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", type=Path, default=Path("runs/base"),
                        help="of the run that makes the embedded default's")
    parser.add_argument("--run", type=Path, help="keep what this one began at")
    given = parser.parse_args(arguments)

    def keep() -> None:
        if given.run:
            return ship(given.run, f"{COMMAND} --run=RUN")
        make(given.workdir)
        ship(given.workdir, COMMAND)

    return exit_status(keep)


if __name__ == "__main__":
    restart_with_tuned_malloc("tarl_jax.training.ship_base")
    sys.exit(main())
