"""GRPO and GRPO+TARL from the same warm start, several seeds each.

    python experiments/first_light/run.py --out=runs/first_light

Runs the main job once per arm and seed (about ten minutes each on 2 cores), one after the other; a
run that is there already is continued or skipped. Then writes `results.jsonl` (one line per run:
arm, seed, both evaluations, versions) and `plot.png` beside this file. The held-out tasks are the
same in all runs; a seed changes the order of the training tasks, the users' words and the sampling.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
ARMS = {"grpo": "configs/grpo.py", "grpo_tarl": "configs/grpo_tarl.py"}
SHOWN = ("pass^1", "pass^4", "clean_pass", "major_share", "waits", "turns", "episode_tokens")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "runs/first_light")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--tag", default="", help="at the end of the two files' names")
    parser.add_argument("overrides", nargs="*", help="e.g. config.rl.steps=20")
    args = parser.parse_args()
    for seed in args.seeds:
        for arm in args.arms:
            run(arm, seed, args.out, args.overrides)
    results = collect(args.out)
    text = "".join(json.dumps(r) + "\n" for r in results)
    (HERE / f"results{args.tag}.jsonl").write_text(text)
    plot(args.out, results, HERE / f"plot{args.tag}.png")
    print(table(results))


def run(arm: str, seed: int, out: Path, overrides: list[str]) -> None:
    workdir = out / f"{arm}-{seed}"
    if (workdir / "summary.json").is_file():
        return
    command = [
        sys.executable, "-m", "tarl_jax.main", f"--config={ROOT / ARMS[arm]}",
        f"--workdir={workdir}", f"--config.seed={seed}", *(f"--{o}" for o in overrides),
    ]
    subprocess.run(command, check=True, cwd=ROOT)


def collect(out: Path) -> list[dict]:
    """The summaries of all finished runs."""
    results = []
    for path in sorted(out.glob("*/summary.json")):
        arm, seed = path.parent.name.rsplit("-", 1)
        versions = json.loads((path.parent / "versions.json").read_text())[-1]
        del versions["command"], versions["platform"]
        steps = [r for r in map(json.loads, (path.parent / "metrics.jsonl").open())
                 if r["kind"] == "train"]
        results.append({
            "arm": arm,
            "seed": int(seed),
            "steps": len(steps),
            "median_seconds": {
                phase: statistics.median(r[f"seconds/{phase}"] for r in steps)
                for phase in ("rollout", "update", "step")
            },
            "compilations_while_training": sum(r["compilations"] for r in steps),
            "versions": versions,
            **json.loads(path.read_text()),
        })
    return results


def table(results: list[dict]) -> str:
    """Markdown: one row per run, base → trained."""
    lines = ["| arm | seed | " + " | ".join(SHOWN) + " |", "|---" * (len(SHOWN) + 2) + "|"]
    for r in results:
        cells = [f"{r['base'][f'eval/{k}']:.3g} → {r['trained'][f'eval/{k}']:.3g}" for k in SHOWN]
        lines.append(f"| {r['arm']} | {r['seed']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plot(out: Path, results: list[dict], path: Path) -> None:
    """Training curves (mean over seeds, each seed thin) and the held-out figures."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import numpy as np

    colors = {"grpo": "#4c72b0", "grpo_tarl": "#dd8452"}
    names = {"grpo": "GRPO", "grpo_tarl": "GRPO + TARL"}
    panels = {
        "train/pass_rate": "training pass rate",
        "train/clean_pass": "training clean pass",
        "judge/major_share": "episodes with a major deviation",
    }
    figure, axes = plt.subplots(1, 4, figsize=(17, 4), constrained_layout=True)
    for axis, (key, title) in zip(axes, panels.items(), strict=False):
        for arm in ARMS:
            curves = []
            for r in (r for r in results if r["arm"] == arm):
                records = map(json.loads, (out / f"{arm}-{r['seed']}/metrics.jsonl").open())
                values = np.array([m[key] for m in records if m["kind"] == "train"])
                smooth = np.convolve(values, np.ones(9) / 9, "valid")
                axis.plot(np.arange(len(smooth)) + 5, smooth, color=colors[arm], alpha=0.3, lw=1)
                curves.append(smooth)
            if curves:
                mean = np.mean([c[: min(map(len, curves))] for c in curves], axis=0)
                axis.plot(np.arange(len(mean)) + 5, mean, color=colors[arm], lw=2.5,
                          label=names[arm])
        axis.set(title=title, xlabel="step", ylim=(0, 1))
        axis.grid(alpha=0.3)
    axes[0].legend(frameon=False)
    bars(axes[3], results, colors, names)
    figure.suptitle("Training curves over 9 steps, held-out figures; thin lines and dots: one seed")
    figure.savefig(path, dpi=110)


def bars(axis, results: list[dict], colors: dict, names: dict) -> None:
    import numpy as np

    keys = ("pass^1", "pass^4", "clean_pass")
    arms = [("base", None), *((names[a], a) for a in ARMS)]
    for place, (label, arm) in enumerate(arms):
        rows = results if arm is None else [r for r in results if r["arm"] == arm]
        part = "base" if arm is None else "trained"
        values = np.array([[r[part][f"eval/{k}"] for k in keys] for r in rows]).reshape(-1, 3)
        if not len(values):
            continue
        x = np.arange(3) + 0.27 * (place - 1)
        axis.bar(x, values.mean(axis=0), 0.25, color=colors.get(arm, "#999999"), label=label)
        for row in values:
            axis.plot(x, row, "k.", ms=4)
    axis.set(title="held out: 256 tasks x 4 trials", xticks=range(3), xticklabels=keys,
             ylim=(0, 1))
    axis.legend(frameon=False)
    axis.grid(alpha=0.3, axis="y")


if __name__ == "__main__":
    main()
