"""Phones that do not work: does a small policy learn tau2-bench's telecom?

    python experiments/telecom/run.py --data ../tau2-bench
    python experiments/telecom/run.py --show

Trains `configs/telecom.py` on the training split of tau2-bench (MIT; a checkout, or its folder
data/tau2/domains/telecom), with the scripted user, from warm starts that are made anew for each
seed, on the embedded phones alone. A run adds a line to results.jsonl beside this file, and runs
whose line is there are not made again; then a table is printed and plot.png is drawn.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import study  # noqa: E402

ARMS = {"stage": study.Arm("configs/telecom.py")}
SHARED = ("config.rl.steps=30", "config.rl.decay_steps=0", "config.eval.every=10",
          "config.eval.tasks=32", "config.eval.trials=4", "config.eval.final_tasks=128")
SHOWN = ("pass^1", "pass^4", "turns", "episode_tokens", "truncated")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="tau2-bench")
    parser.add_argument("--out", type=Path, default=study.ROOT / "runs/telecom")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="warm starts")
    parser.add_argument("--show", action="store_true", help="only print and draw what there is")
    parser.add_argument("fields", nargs="*", help="of every run, e.g. config.rl.steps=20")
    args = parser.parse_args()
    path = HERE / "results.jsonl"
    if not args.show:
        if args.data is None:
            parser.error("--data: name tau2-bench's checkout, or its folder of telecom")
        data = f"config.sandbox.data={args.data.expanduser().resolve()}"
        study.make(ARMS, args.seeds, args.out, path, (*SHARED, data, *args.fields),
                   seeded=("config.warm_start.seed",))
    results = sorted(study.read(path), key=lambda r: r["seed"])
    if not results:
        parser.error(f"{path} has no results yet: run it without --show")
    print(study.table(results, SHOWN))
    plot(results, HERE / "plot.png")


def plot(results: Sequence[dict[str, Any]], path: Path) -> None:
    """Pass rate while training, a line per warm start; and held out, before and after."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import numpy as np

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), constrained_layout=True)
    for r in results:
        curve = np.convolve(r["curves"]["train/pass_rate"], np.ones(3) / 3, "valid")
        line = left.plot(np.arange(len(curve)) + 2, curve, label=f"warm start {r['seed']}")[0]
        ends = [r[when]["eval/pass^1"] for when in ("base", "trained")]
        right.plot([0, 1], ends, "o-", color=line.get_color())
    left.set(title="training tasks, mean of 3 steps", xlabel="step", ylabel="pass rate")
    left.legend(frameon=False)
    right.set(title="held-out tasks, pass^1", xticks=[0, 1], xticklabels=["before", "after"],
              xlim=(-0.3, 1.3))
    for axis in (left, right):
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
    figure.suptitle("τ²-bench's telecom, a policy of 0.9 million parameters, scripted user")
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    main()
