"""Makes the warm start of the embedded default and puts it into the package.

    python -m tarl_jax.training.ship_base [--workdir=DIR]

Every run of the embedded default begins at this policy, so that the first command trains within a
minute and figures can be compared. It takes as long as a warm start (about five minutes on two
cores). Beside the policy (`warm_start/default.npz`, half precision) stands how it was made.
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


def ship(workdir: Path) -> None:
    """Runs the warm start anew, evaluates it on held-out tasks, and keeps it."""
    from tarl_jax.config import RunConfig
    from tarl_jax.rollout.environment import Environment
    from tarl_jax.runs.checkpoint import Checkpoints
    from tarl_jax.training.policy import make_updater, restore
    from tarl_jax.training.train import train
    from tarl_jax.warm_start.recipe import DEFAULT, save_default, warm_start_digest

    default = RunConfig()
    config = dataclasses.replace(
        default, name="base", workdir=str(workdir),
        warm_start=dataclasses.replace(default.warm_start, make=True),
        rl=dataclasses.replace(default.rl, steps=0),
    )
    found = train(config)["base"]
    checkpoints = Checkpoints(workdir, config.checkpoint)
    env = Environment.from_config(config)
    state = restore(config, env, make_updater(config, env), checkpoints, 0)
    checkpoints.close()
    versions = json.loads((workdir / "versions.json").read_text("utf-8"))[-1]
    shown = ("pass^1", "pass^4", "clean_pass", "entropy", "pass_variance")
    save_default(state.policy, {
        "digest": warm_start_digest(config, env),
        "command": COMMAND,
        "date": datetime.date.today().isoformat(),
        "commit": versions["commit"],
        "packages": versions["packages"],
        "before_rounding": {k: found[f"eval/{k}"] for k in shown if f"eval/{k}" in found},
    })
    print(f"{DEFAULT}: {DEFAULT.stat().st_size / 2**20:.1f} MiB")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog=COMMAND, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", type=Path, default=Path("runs/base"), help="of its run")
    given = parser.parse_args(arguments)
    return exit_status(lambda: ship(given.workdir))


if __name__ == "__main__":
    restart_with_tuned_malloc("tarl_jax.training.ship_base")
    sys.exit(main())
