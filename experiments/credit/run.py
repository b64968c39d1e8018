"""Every way of crediting turns that the paper compares, from one warm start, in two tiers.

    python experiments/credit/run.py --tier=standard --jobs=2
    python experiments/credit/run.py --tier=long --jobs=2

`standard` has the default's tasks; `long` has four to six requests each: the warm start seldom
serves all of them, so a verdict is rarely good news. A run adds a line to `TIER.jsonl` beside this
file, and runs whose line is there are not made again; then `TIER.png` is drawn and the tables are
printed. The warm start has seen worked maths problems in every arm, so that those with maths in the
mix begin like the others.
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

ARMS = {
    "grpo": study.Arm("configs/grpo.py"),
    "grpo_tarl": study.Arm("configs/grpo_tarl.py"),
    "math_grpo": study.Arm("configs/math_grpo.py"),
    "math_tarl": study.Arm("configs/math_tarl.py"),
    "ppo_tarl": study.Arm("configs/ppo_tarl.py"),
    "ppo_turn_end": study.Arm("configs/ppo_turn_end.py"),
    "rloo": study.Arm("configs/rloo.py"),
    "spo": study.Arm("configs/spo.py"),
    # Beyond the paper's: two more configs, and what the answer to "when does it pay?" may hang on.
    "ppo": study.Arm("configs/ppo.py"),
    "single_stream": study.Arm("configs/single_stream.py"),
    # GRPO that does not divide by a group's spread is RLOO, times 7 / 8 in groups of eight.
    "rloo_terminal": study.Arm("configs/rloo.py", ("config.reward.placement=terminal",)),
    "grpo_tarl_taken": study.Arm("configs/grpo_tarl.py", ("config.reward.denominator=taken",)),
    "grpo_tarl_batch": study.Arm("configs/grpo_tarl.py", ("config.rl.normalise=batch",)),
    "grpo_tarl_noise": study.Arm("configs/grpo_tarl.py", ("config.judge.noise.flip=0.2",)),
    "grpo_tarl_turns": study.Arm("configs/grpo.py", ("config.reward.turn_weight=0.5",)),
    "grpo_tarl_entropy": study.Arm("configs/grpo_tarl.py", ("config.rl.entropy_coef=0.01",)),
    "grpo_tarl_interrupted": study.Arm("configs/grpo_tarl.py", ("config.rollout.interruptions=2",)),
}
PAPER = list(ARMS)[:8]
# Both tiers: one warm start for all arms; a score on maths too.
SHARED = ("config.maths.demonstrations=0.2", "config.eval.maths_tasks=64", "config.eval.every=0")
TIERS = {
    "standard": (*SHARED, "config.rl.steps=60"),
    "long": (
        *SHARED, "config.tasks.requests=(0.0,0.0,0.0,0.3,0.4,0.3)",
        "config.shop.num_users=110", "config.shop.orders_per_user=8",
        "config.rollout.max_turns=50", "config.rollout.max_episode_tokens=1280",
        "config.rollout.tasks_per_step=8", "config.eval.final_tasks=96", "config.rl.steps=40",
    ),
}
SHOWN = ("pass^1", "pass^4", "clean_pass", "major_share", "waits", "turns", "episode_tokens")
METRICS = ("pass^1", "pass^4", "clean_pass")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tier", choices=list(TIERS), default="standard")
    parser.add_argument("--out", type=Path, default=study.ROOT / "runs/credit")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", default=PAPER, choices=list(ARMS))
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, on cores of their own")
    parser.add_argument("fields", nargs="*", help="of every arm, e.g. config.rl.steps=20")
    args = parser.parse_args()
    path = HERE / f"{args.tier}.jsonl"
    study.make(
        {name: ARMS[name] for name in args.arms}, args.seeds, args.out / args.tier, path,
        (*TIERS[args.tier], *args.fields), args.jobs,
    )
    order = list(ARMS)
    results = sorted(study.read(path), key=lambda r: (order.index(r["arm"]), r["seed"]))
    plot(results, args.tier, HERE / f"{args.tier}.png")
    print(study.table(results, SHOWN), "\n")
    print(study.means(results, SHOWN), "\n")
    found = {r["arm"] for r in results}
    pairs = [(arm, "grpo") for arm in ARMS if arm in found - {"grpo"}]
    pairs.append(("rloo", "rloo_terminal"))
    print(study.differences(results, (*METRICS, "major_share"), pairs))


def plot(results: Sequence[dict[str, Any]], tier: str, path: Path) -> None:
    """Held-out figures per arm: a dot per seed with its 95% interval, the base as a line."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    arms = [name for name in ARMS if any(r["arm"] == name for r in results)]
    figure, axes = plt.subplots(
        1, len(METRICS), figsize=(14, 1.5 + 0.35 * len(arms)), sharey=True,
        constrained_layout=True,
    )
    for axis, metric in zip(axes, METRICS, strict=True):
        key = f"eval/{metric}"
        for place, name in enumerate(arms):
            own = [r["trained"] for r in results if r["arm"] == name]
            for shift, r in enumerate(own):
                y = place + 0.18 * (shift - (len(own) - 1) / 2)
                axis.plot([r[f"{key}_low"], r[f"{key}_high"]], [y, y], color="#4c72b0", lw=1.2)
                axis.plot(r[key], y, "o", color="#4c72b0", ms=4)
        base = sum(r["base"][key] for r in results) / len(results)
        axis.axvline(base, color="#999999", ls="--", label="warm start")
        axis.set(title=metric, yticks=range(len(arms)), yticklabels=arms)
        axis.grid(alpha=0.3, axis="x")
    axes[0].invert_yaxis()
    axes[0].legend(frameon=False)
    figure.suptitle(f"{tier}: held out, after training; a dot per seed, 95% intervals over tasks")
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
