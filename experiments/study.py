"""What the experiments share: runs of the main job, one per arm and seed, and their results.

A result is one JSON line, added when its run has ended; a run whose line is there is not made
again, and one that was stopped goes on. So a study of many hours can be made in pieces.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
CURVES = ("train/pass_rate", "train/clean_pass", "judge/major_share")  # kept for every step


@dataclasses.dataclass(frozen=True)
class Arm:
    """A config, and fields of it as `config.group.field=value`."""

    config: str
    fields: tuple[str, ...] = ()


def make(
    arms: Mapping[str, Arm], seeds: Sequence[int], out: Path, results: Path, fields: Sequence[str]
) -> list[dict[str, Any]]:
    """Runs what has no result yet, seed after seed; returns the results of these arms.

    Args:
      out: folder of the runs.
      results: JSON lines; each is made of what `summary` says.
      fields: of every arm.
    """
    for seed in seeds:
        for name, arm in arms.items():
            if any((r["arm"], r["seed"]) == (name, seed) for r in read(results)):
                continue
            workdir = out / f"{name}-{seed}"
            command = [
                sys.executable, "-m", "tarl_jax.main", f"--config={ROOT / arm.config}",
                f"--workdir={workdir}", f"--config.seed={seed}",
                *(f"--{field}" for field in (*arm.fields, *fields)),
            ]
            subprocess.run(command, check=True, cwd=ROOT)
            with results.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"arm": name, "seed": seed, **summary(workdir)}) + "\n")
    return [r for r in read(results) if r["arm"] in arms]


def read(results: Path) -> list[dict[str, Any]]:
    """The results so far."""
    if not results.exists():
        return []
    return [json.loads(line) for line in results.read_text("utf-8").splitlines()]


def summary(workdir: Path) -> dict[str, Any]:
    """What a finished run came to: both evaluations, curves, times, versions."""
    versions = json.loads((workdir / "versions.json").read_text("utf-8"))[-1]
    del versions["command"], versions["platform"]
    lines = (workdir / "metrics.jsonl").read_text("utf-8").splitlines()
    steps = [r for r in map(json.loads, lines) if r["kind"] == "train"]
    return {
        "steps": len(steps),
        "median_seconds": {
            phase: statistics.median(r[f"seconds/{phase}"] for r in steps)
            for phase in ("rollout", "update", "step")
        },
        "compilations_while_training": sum(r["compilations"] for r in steps),
        "curves": {key: [round(r[key], 4) for r in steps] for key in CURVES},
        "versions": versions,
        **json.loads((workdir / "summary.json").read_text("utf-8")),
    }


def table(results: Sequence[Mapping[str, Any]], shown: Sequence[str]) -> str:
    """Markdown: a row per run, base → trained."""
    lines = ["| arm | seed | " + " | ".join(shown) + " |", "|---" * (len(shown) + 2) + "|"]
    for r in results:
        cells = [f"{r['base'][f'eval/{k}']:.3g} → {r['trained'][f'eval/{k}']:.3g}" for k in shown]
        lines.append(f"| {r['arm']} | {r['seed']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def means(
    results: Sequence[Mapping[str, Any]], shown: Sequence[str], against: str, metric: str
) -> str:
    """Markdown: a row per arm, mean over its seeds after training, lowest to highest.

    The last column is the difference of `metric` from the arm `against` on the same seeds: mean and
    standard error over seeds.
    """
    arms = list(dict.fromkeys(r["arm"] for r in results))
    values = {
        (r["arm"], r["seed"]): {k: r["trained"][f"eval/{k}"] for k in (*shown, metric)}
        for r in results
    }
    lines = [
        "| arm | seeds | " + " | ".join(shown) + f" | {metric} against {against} |",
        "|---" * (len(shown) + 3) + "|",
    ]
    for arm in arms:
        own = {seed: v for (name, seed), v in values.items() if name == arm}
        cells = []
        for k in shown:
            found = [v[k] for v in own.values()]
            cells.append(f"{statistics.mean(found):.3g} ({min(found):.3g} to {max(found):.3g})")
        gaps = [
            v[metric] - values[against, seed][metric]
            for seed, v in own.items() if arm != against and (against, seed) in values
        ]
        error = statistics.stdev(gaps) / len(gaps) ** 0.5 if len(gaps) > 1 else float("nan")
        last = f"{statistics.mean(gaps):+.3f} ± {error:.3f}" if gaps else ""
        lines.append(f"| {arm} | {len(own)} | " + " | ".join([*cells, last]) + " |")
    return "\n".join(lines)
