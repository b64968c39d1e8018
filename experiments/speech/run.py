"""Does a policy that trains on text alone stop listening? Four arms from one warm start by ear.

    python experiments/speech/run.py --out=runs/speech

| arm | users | warm-up and maths |
|---|---|---|
| text | write | no |
| text_maths | write | yes |
| mixed | half of them speak | no |
| mixed_maths | half of them speak, from none at first | yes |

Runs the main job once per arm and seed, one after the other. What is there already is continued or
skipped, so the command may be stopped and given again. Every run is evaluated on the same held-out
tasks, written, spoken, and spoken in noise at 10 dB. Then writes `results.jsonl` (one line per run
and sense) and `plot.png` beside this file. Arguments at the end are for every run, e.g.
config.rl.steps=20.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
NOISE = "white:10"
WRITTEN = ["speech.share=0.0", "curriculum.spoken=0.0"]
NO_MIX = ["maths.ratio=(0.0,)", "maths.min_pass=0.0", "maths.max_pass=1.0",
          "curriculum.warmup_steps=0", "curriculum.maths=0.0"]
ARMS = {
    "text": WRITTEN + NO_MIX,
    "text_maths": WRITTEN,
    "mixed": NO_MIX,
    "mixed_maths": [],
}
SENSES = {"read": "eval/", "heard": "eval/heard/clean/", "heard_noise": f"eval/heard/{NOISE}/"}
SHOWN = ("pass^1", "pass^4", "clean_pass", "waits", "turns", "episode_tokens")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "runs/speech")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--size", default="", help="of configs/omni_tarl.py, e.g. tiny")
    parser.add_argument("--tag", default="", help="at the end of the two files' names")
    parser.add_argument("--collect", action="store_true", help="runs nothing")
    parser.add_argument("overrides", nargs="*")
    args = parser.parse_args()
    for seed in args.seeds:
        for arm in args.arms:
            if not args.collect:
                run(arm, seed, args)
    results = collect(args.out)
    text = "".join(json.dumps(r) + "\n" for r in results)
    (HERE / f"results{args.tag}.jsonl").write_text(text)
    plot(results, HERE / f"plot{args.tag}.png")
    print(table(results))


def run(arm: str, seed: int, args: argparse.Namespace) -> None:
    workdir = args.out / f"{arm}-{seed}"
    if (workdir / "summary.json").is_file():
        return
    size = f":{args.size}" if args.size else ""
    values = [*ARMS[arm], f"eval.heard=('clean','{NOISE}')", f"seed={seed}", f"name={arm}"]
    command = [
        sys.executable, "-m", "tarl_jax.main", f"--config={ROOT}/configs/omni_tarl.py{size}",
        f"--workdir={workdir}", *(f"--config.{value}" for value in values),
        *(f"--{override}" for override in args.overrides),
    ]
    subprocess.run(command, check=True, cwd=ROOT)


def collect(out: Path) -> list[dict]:
    """One record per finished run, evaluation and sense, with 95% intervals."""
    results = []
    for path in sorted(out.glob("*/summary.json")):
        arm, seed = path.parent.name.rsplit("-", 1)
        summary = json.loads(path.read_text())
        versions = json.loads((path.parent / "versions.json").read_text())[-1]
        for when in ("base", "trained"):
            for sense, prefix in SENSES.items():
                values = {
                    name.removeprefix(prefix): value for name, value in summary[when].items()
                    if name.startswith(prefix) and "/" not in name.removeprefix(prefix)
                }
                results.append({"arm": arm, "seed": int(seed), "when": when, "sense": sense,
                                "commit": versions["commit"], "time": versions["time"], **values})
    return results


def table(results: list[dict]) -> str:
    """Markdown: one row per run and sense, base → trained."""
    lines = ["| arm | seed | sense | " + " | ".join(SHOWN) + " |", "|---" * (len(SHOWN) + 3) + "|"]
    keys = sorted({(r["arm"], r["seed"], r["sense"]) for r in results})
    for key in keys:
        base, trained = (
            next(r for r in results
                 if (r["arm"], r["seed"], r["sense"], r["when"]) == (*key, when))
            for when in ("base", "trained")
        )
        cells = [f"{_show(base, name)} → {_show(trained, name)}" for name in SHOWN]
        lines.append("| " + " | ".join([*map(str, key), *cells]) + " |")
    return "\n".join(lines)


def _show(record: dict, name: str) -> str:
    if name not in record:
        return "-"
    interval = ""
    if f"{name}_low" in record:
        interval = f" ({record[f'{name}_low']:.2f} to {record[f'{name}_high']:.2f})"
    return f"{record[name]:.3g}{interval}"


def plot(results: list[dict], path: Path) -> None:
    """pass^1 and pass^4 by sense and arm: bars are means over seeds, dots single seeds."""
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
            for x, sense in enumerate(SENSES):
                rows = [r[measure] for r in results if measure in r and r["sense"] == sense and (
                    r["when"] == "base" if arm == "base"
                    else (r["arm"], r["when"]) == (arm, "trained"))]
                if not rows:
                    continue
                at = x + width * (place - (len(arms) - 1) / 2)
                axis.bar(at, np.mean(rows), 0.9 * width, color=colors[arm],
                         label=arm if x == 0 else None)
                axis.plot([at] * len(rows), rows, "k.", ms=4)
        axis.set(title=measure, xticks=range(len(SENSES)), ylim=(0, 1),
                 xticklabels=["read", "heard", f"heard, {NOISE} dB"])
        axis.grid(alpha=0.3, axis="y")
    axes[0].legend(frameon=False)
    figure.suptitle("Held-out tasks after training; base: the warm start of all runs")
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
