"""Makes the table for `reward.calibration` from the training episodes that a run has saved.

    python -m tarl_jax.training.calibrate_turns RUN --out=table.json [--last=20]

A run saves `log.trajectories` episodes a step: raise it for more. --last takes the last so many
steps only, since what discriminates changes with the policy.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tarl_jax.config import InputError
from tarl_jax.rl.calibration import Kind, calibrate, save_table, turn_kind
from tarl_jax.runs.metrics import read_trajectories, trajectory_files


def calibrate_run(run_dir: Path, last: int = 0) -> dict[str, Kind]:
    """The table of a run's training episodes; of all steps where `last` is 0.

    Episodes that were not judged or that the infrastructure broke are left out. Raises ValueError
    if none is left.
    """
    files = list(trajectory_files(run_dir).values())[-last:]
    found = [
        t for path in files for t in read_trajectories(path)
        if t.turn_scores is not None and t.success is not None
    ]
    if not found:
        raise InputError(f"{run_dir}: holds no judged training episode to calibrate by")
    return calibrate(
        [[turn_kind(turn) for turn in t.turns] for t in found],
        [t.turn_scores or [] for t in found],
        [bool(t.success) for t in found],
        [t.task.task_id for t in found],
    )


def show(table: dict[str, Kind]) -> str:
    """The table as text, what tells most first."""
    lines = [f"{'kind':42} {'value':>6} {'corr.':>6} {'episodes':>8} {'passed':>7} {'without':>8}"]
    for name, kind in sorted(table.items(), key=lambda item: -abs(item[1].correlation)):
        lines.append(
            f"{name:42} {kind.value:+6.2f} {kind.correlation:+6.2f} {kind.episodes:8}"
            f" {kind.passed:7.3f} {kind.passed_without:8.3f}"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tarl_jax.training.calibrate_turns", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", type=Path, help="directory of a run")
    parser.add_argument("--out", type=Path, required=True, help="where to write the table")
    parser.add_argument("--last", type=int, default=0, help="of the last so many steps; 0: all")
    given = parser.parse_args(arguments)
    try:
        table = calibrate_run(given.run, given.last)
        save_table(given.out, table)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(show(table))
    return 0


if __name__ == "__main__":
    sys.exit(main())
