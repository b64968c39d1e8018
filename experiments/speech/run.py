"""Does a policy that trains on text alone unlearn speech? Four arms from one warm start with it.

    python experiments/speech/run.py --out=runs/speech --jobs=2

| arm | users | warm-up and maths |
|---|---|---|
| text | write | no |
| text_maths | write | yes |
| mixed | half of them speak | no |
| mixed_maths | half of them speak, from none at first | yes |

Runs the main job once per arm and seed, 60 steps each, where `results.jsonl` beside this file
has no line of it yet, so the command may be stopped and given again. Every run is evaluated on the
same held-out tasks, written, spoken, and spoken in noise at 10 dB. Then draws `plot.png`.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import study  # noqa: E402

NOISE = "white:10"
WRITTEN = ("config.speech.share=0.0", "config.curriculum.spoken=0.0")
NO_MIX = ("config.maths.ratio=(0.0,)", "config.maths.min_pass=0.0", "config.maths.max_pass=1.0",
          "config.curriculum.warmup_steps=0", "config.curriculum.maths=0.0")
CONFIG = "configs/omni_tarl.py"
SPOKEN = f"config.eval.spoken=('clean','{NOISE}')"
LENGTH = ("config.eval.every=0", "config.eval.final_tasks=96", "config.rl.steps=60")
ARMS = {
    "text": study.Arm(CONFIG, WRITTEN + NO_MIX),
    "text_maths": study.Arm(CONFIG, WRITTEN),
    "mixed": study.Arm(CONFIG, NO_MIX),
    "mixed_maths": study.Arm(CONFIG),
}
PAIRS = (("mixed", "text"), ("mixed_maths", "text_maths"), ("text_maths", "text"),
         ("mixed_maths", "mixed"))  # what one arm has more than the other
MODALITIES = {"written": "eval/", "spoken": "eval/spoken/clean/",
              "spoken_noise": f"eval/spoken/{NOISE}/"}
SHOWN = ("pass^1", "pass^4", "clean_pass", "waits", "turns", "episode_tokens")
Record = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=study.ROOT / "runs/speech")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--size", default="", help="of configs/omni_tarl.py, e.g. tiny")
    parser.add_argument("--tag", default="", help="at the end of the two files' names")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, on cores of their own")
    parser.add_argument("fields", nargs="*", help="of every arm, e.g. config.rl.steps=20")
    args = parser.parse_args()
    size = f":{args.size}" if args.size else ""
    arms = {n: dataclasses.replace(ARMS[n], config=f"{CONFIG}{size}") for n in args.arms}
    runs = study.make(
        arms, args.seeds, args.out, HERE / f"results{args.tag}.jsonl",
        (SPOKEN, *(() if args.size else LENGTH), *args.fields), args.jobs,
    )
    results = by_modality(runs)
    plot(results, HERE / f"plot{args.tag}.png")
    print(table(results))
    for modality in MODALITIES:
        rows = [{"arm": r["arm"], "seed": r["seed"],
                 "trained": {f"eval/{name}": r.get(name, math.nan) for name in SHOWN}}
                for r in results if (r["modality"], r["when"]) == (modality, "trained")]
        print(f"\n{modality}, after training\n\n{study.means(rows, SHOWN)}\n")
        print(study.differences(rows, ("pass^1", "pass^4"), PAIRS))


def by_modality(runs: list[Record]) -> list[Record]:
    """One record per run, evaluation and modality, with 95% intervals."""
    results = []
    for run in runs:
        for when in ("base", "trained"):
            for modality, prefix in MODALITIES.items():
                values = {
                    name.removeprefix(prefix): value for name, value in run[when].items()
                    if name.startswith(prefix) and "/" not in name.removeprefix(prefix)
                }
                results.append({"arm": run["arm"], "seed": run["seed"], "when": when,
                                "modality": modality, **values})
    return results


def table(results: list[Record]) -> str:
    """Markdown: one row per run and modality, base → trained."""
    lines = [f"| arm | seed | modality | {' | '.join(SHOWN)} |", "|---" * (len(SHOWN) + 3) + "|"]
    keys = sorted({(r["arm"], r["seed"], r["modality"]) for r in results})
    for key in keys:
        base, trained = (
            next(r for r in results
                 if (r["arm"], r["seed"], r["modality"], r["when"]) == (*key, when))
            for when in ("base", "trained")
        )
        cells = [f"{_show(base, name)} → {_show(trained, name)}" for name in SHOWN]
        lines.append("| " + " | ".join([*map(str, key), *cells]) + " |")
    return "\n".join(lines)


def _show(record: Record, name: str) -> str:
    if name not in record:
        return "-"
    interval = ""
    if f"{name}_low" in record:
        interval = f" ({record[f'{name}_low']:.2f} to {record[f'{name}_high']:.2f})"
    return f"{record[name]:.3g}{interval}"


def plot(results: list[Record], path: Path) -> None:
    """pass^1 and pass^4 by modality and arm: bars are means over seeds, dots single seeds."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import numpy as np

    arms = ["base", *(arm for arm in ARMS if any(r["arm"] == arm for r in results))]
    colors = dict(zip(["base", *ARMS], ("#999999", "#c44e52", "#dd8452", "#4c72b0", "#55a868"),
                      strict=True))
    figure, axes = plt.subplots(1, 2, figsize=(13, 4.2), constrained_layout=True)
    for axis, measure in zip(axes, ("pass^1", "pass^4"), strict=True):
        width = 0.8 / len(arms)
        for place, arm in enumerate(arms):
            for x, modality in enumerate(MODALITIES):
                played = [r for r in results if measure in r and r["modality"] == modality]
                rows = [r[measure] for r in played if (
                    r["when"] == "base" if arm == "base"
                    else (r["arm"], r["when"]) == (arm, "trained"))]
                if not rows:
                    continue
                at = x + width * (place - (len(arms) - 1) / 2)
                axis.bar(at, np.mean(rows), 0.9 * width, color=colors[arm],
                         label=arm if x == 0 else None)
                axis.plot([at] * len(rows), rows, "k.", ms=4)
        axis.set(title=measure, xticks=range(len(MODALITIES)), ylim=(0, 1),
                 xticklabels=["written", "spoken", f"spoken, {NOISE} dB"])
        axis.grid(alpha=0.3, axis="y")
    axes[0].legend(frameon=False)
    figure.suptitle("Held-out tasks after training; base: the warm start of all runs")
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
