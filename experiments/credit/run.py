"""Which way of crediting turns learns what: a study over warm starts, in two tiers.

    python experiments/credit/run.py --tier=main --jobs=2
    python experiments/credit/run.py --tier=standard --jobs=2

`main` has tasks of three to five requests, all of which the warm start serves in 5 to 15 of 100
episodes; `standard` has the default's. The unit of replication is the warm start: seed k trains
from the k-th one, made anew with everything else the same. A run adds a line to `TIER.jsonl` beside
this file, and runs whose line is there are not made again, so that the study can be stopped and
continued; then tables are printed and `TIER.png` is drawn.
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

RATE = "config.rl.learning_rate=3e-4"
UNDIVIDED = ("config.rl.normalise=scale", RATE)
STAGE = ("config.reward.placement=stage", *UNDIVIDED)
BOTH = (*STAGE, "config.reward.episode_weight=1.0")
ARMS = {
    "base": study.Arm("configs/sft.py", ("config.rl.steps=0",)),
    "verdict": study.Arm("configs/grpo.py", UNDIVIDED),
    "verdict_divided": study.Arm("configs/grpo.py", ("config.rl.normalise=group", RATE)),
    "published": study.Arm("configs/tarl_published.py", (RATE,)),
    "undivided": study.Arm(
        "configs/grpo_tarl.py",
        ("config.reward.placement=trajectory", "config.reward.episode_weight=0.0", *UNDIVIDED),
    ),
    "stage": study.Arm("configs/grpo_tarl.py", (*STAGE, "config.reward.episode_weight=0.0")),
    "stage_and_scalar": study.Arm("configs/grpo_tarl.py", BOTH),
    "stage_no_judge": study.Arm("configs/grpo_tarl.py", (*BOTH, "config.reward.stage_judge=False")),
    "gigpo": study.Arm("configs/grpo.py", (
        *UNDIVIDED, "config.rl.advantage=gigpo", "config.reward.turn_weight=1.0",
        "config.rl.turn_discount=0.95",
    )),
    "return_to_go": study.Arm("configs/grpo_tarl.py", (
        "config.reward.placement=trajectory", "config.reward.episode_weight=0.0", *UNDIVIDED,
        "config.rl.advantage=return_to_go",
    )),
    "ppo_turn_end": study.Arm("configs/ppo_turn_end.py", (RATE,)),
    "maths": study.Arm("configs/math_tarl.py", BOTH),
    **{f"stage_flip_{p}": study.Arm(
        "configs/grpo_tarl.py", (*BOTH, f"config.judge.noise.flip=0.{p}")) for p in (10, 20, 30)},
    "stage_abstain_20": study.Arm(
        "configs/grpo_tarl.py", (*BOTH, "config.judge.noise.abstain=0.2")),
    "stage_optimist": study.Arm("configs/grpo_tarl.py", (*BOTH, "config.judge.noise.optimism=0.3")),
    # The sweep for the defaults, of stage_and_scalar.
    **{f"rate_{rate}": study.Arm("configs/grpo_tarl.py", (*BOTH, f"config.rl.learning_rate={rate}"))
       for rate in ("1e-4", "6e-4", "1e-3")},
    "two_epochs": study.Arm("configs/grpo_tarl.py", (*BOTH, "config.rl.epochs=2")),
    "four_minibatches": study.Arm("configs/grpo_tarl.py", (*BOTH, "config.rl.minibatches=4")),
}
FIRST = ["base", "verdict", "published", "undivided", "stage_and_scalar"]
# The runs' own evaluations are short; one more at the end is long.
SHARED = (
    "config.eval.every=0", "config.eval.final_tasks=8", "config.eval.trials=2",
    "config.rl.decay_steps=0", "config.reward.minor_scale=0.0",
)
LONG_EVALUATION = ("config.eval.final_tasks=256", "config.eval.trials=16")
TIERS = {
    "main": (
        *SHARED, "config.tasks.requests=(0.0,0.0,0.34,0.33,0.33)", "config.shop.num_users=150",
        "config.shop.orders_per_user=6", "config.rollout.max_turns=50",
        "config.rollout.max_episode_tokens=1024", "config.rollout.tasks_per_step=8",
        "config.rl.minibatches=2", "config.rl.steps=40",
    ),
    "standard": (*SHARED, "config.rl.steps=60"),
}
KEYS = ("pass^1", "pass^4", "clean_pass", "area")
SHOWN = ("pass^1", "pass^4", "clean_pass", "major_share", "turns", "episode_tokens", "truncated")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tier", choices=list(TIERS), default="main")
    parser.add_argument("--out", type=Path, default=study.ROOT / "runs/credit")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4],
                        help="warm starts")
    parser.add_argument("--arms", nargs="+", default=FIRST, choices=list(ARMS))
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, on cores of their own")
    parser.add_argument("--show", action="store_true", help="only print and draw what there is")
    parser.add_argument("fields", nargs="*", help="of every arm, e.g. config.rl.steps=20")
    args = parser.parse_args()
    path = HERE / f"{args.tier}.jsonl"
    if not args.show:
        # Warm starts first: a base run makes each, and the arms of its seed find it.
        first = [arm for arm in args.arms if arm == "base"]
        for arms in (first, [arm for arm in args.arms if arm != "base"]):
            study.make(
                {name: ARMS[name] for name in arms}, args.seeds, args.out / args.tier, path,
                (*TIERS[args.tier], *args.fields), args.jobs, seeded=("config.warm_start.seed",),
                evaluation=LONG_EVALUATION,
            )
    order = list(ARMS)
    results = sorted(study.read(path), key=lambda r: (order.index(r["arm"]), r["seed"]))
    print(study.means(results, SHOWN), "\n")
    found = [arm for arm in ARMS if arm != "base" and any(r["arm"] == arm for r in results)]
    pairs = [(arm, "verdict") for arm in found if arm != "verdict"]
    pairs += [("stage_and_scalar", arm) for arm in ("undivided", "published") if arm in found]
    print(study.comparisons(results, KEYS, pairs))
    plot(results, args.tier, HERE / f"{args.tier}.png")


def plot(results: Sequence[dict[str, Any]], tier: str, path: Path) -> None:
    """Held-out figures per arm: a dot per warm start, the mean as a bar; and curves of training."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import numpy as np

    arms = [name for name in ARMS if any(r["arm"] == name for r in results)]
    figure, axes = plt.subplots(
        1, 4, figsize=(16, 2.0 + 0.35 * len(arms)), constrained_layout=True
    )
    for axis, metric in zip(axes, KEYS[:3], strict=False):
        for place, name in enumerate(arms):
            own = [r["trained"][f"eval/{metric}"] for r in results if r["arm"] == name]
            axis.barh(place, np.mean(own), color="#c7d4ea")
            axis.plot(own, [place] * len(own), "o", color="#4c72b0", ms=4)
        axis.set(title=f"{metric}, held out", yticks=range(len(arms)), yticklabels=arms)
        axis.grid(alpha=0.3, axis="x")
        axis.invert_yaxis()
    for name in arms:
        curves = [r["curves"]["train/pass_rate"] for r in results if r["arm"] == name]
        if not curves or not curves[0]:
            continue
        mean = np.mean(curves, axis=0)
        smooth = np.convolve(mean, np.ones(5) / 5, "valid")
        axes[3].plot(np.arange(len(smooth)) + 3, smooth, label=name)
    axes[3].set(title="training pass rate, over 5 steps", xlabel="step")
    axes[3].legend(frameon=False, fontsize=8)
    axes[3].grid(alpha=0.3)
    figure.suptitle(f"{tier} tier: a dot per warm start")
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    main()
