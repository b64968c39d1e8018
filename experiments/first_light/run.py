"""GRPO and GRPO+TARL from the same warm start, several seeds each.

    python experiments/first_light/run.py --out=runs/first_light

Runs the main job once per arm and seed (about ten minutes each on 2 cores), one after the other,
where `results.jsonl` beside this file has no line of it yet; then draws `plot.png`. The held-out
tasks are the same in all runs; a seed changes the order of the training tasks, the users' words and
the sampling.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import study  # noqa: E402

ARMS = {"grpo": study.Arm("configs/grpo.py"), "grpo_tarl": study.Arm("configs/grpo_tarl.py")}
SHOWN = ("pass^1", "pass^4", "clean_pass", "major_share", "waits", "turns", "episode_tokens")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=study.ROOT / "runs/first_light")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--tag", default="", help="at the end of the two files' names")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, on cores of their own")
    parser.add_argument("fields", nargs="*", help="e.g. config.rl.steps=20")
    args = parser.parse_args()
    arms = {name: ARMS[name] for name in args.arms}
    results = study.make(
        arms, args.seeds, args.out, HERE / f"results{args.tag}.jsonl", args.fields, args.jobs
    )
    results.sort(key=lambda r: (r["arm"], r["seed"]))
    plot(results, HERE / f"plot{args.tag}.png")
    print(study.table(results, SHOWN))


def plot(results: list[dict], path: Path) -> None:
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
                values = np.array(r["curves"][key])
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
