"""What does training on text alone cost on spoken tasks? A study over warm starts.

    python experiments/speech/run.py --jobs=2
    python experiments/speech/run.py --size=tiny --seeds 0 1 --tag=_tiny --out=runs/speech_tiny
    python experiments/speech/run.py --arms base text mixed --tag=_80_steps --out=runs/speech_80 \\
        config.rl.steps=80 config.rl.decay_steps=80

| arm | users | warm-up and maths | audio encoder |
|---|---|---|---|
| text | write | no | does not change: nobody speaks |
| mixed | half of them speak | no | trains |
| mixed_frozen | half of them speak | no | frozen |
| text_maths | write | yes | does not change |
| mixed_maths | half of them speak, from none at first | yes | trains |

The unit of replication is the warm start: seed k trains from the k-th one for 40 steps, in the
voices and acoustics of configs/omni_noisy.py, with everything else the same. "base" is that warm
start. The 0th is the package's; the others are made anew, in fewer steps, from random parameters,
but for the audio encoder, which begins at that of five_voices. They never hear Piper's voice, whose
clips cost 0.64 s of a core each. Held-out tasks are played by the same users in writing and spoken:
clean, in white noise at 10 dB, by telephone, and by eSpeak's voices that were held out. A run adds
a line to `results.jsonl` beside this file, and runs whose line is there are not made again, so the
command may be stopped and given again; then tables are printed and `plot.png` is drawn.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import study  # noqa: E402

from tarl_jax.config.presets import HELD_OUT  # noqa: E402

CONFIG = "configs/omni_noisy.py"
WRITTEN = ("config.speech.share=0.0", "config.curriculum.spoken=0.0")
NO_MIX = ("config.maths.ratio=(0.0,)", "config.maths.min_pass=0.0", "config.maths.max_pass=1.0",
          "config.curriculum.warmup_steps=0", "config.curriculum.maths=0.0",
          "config.eval.maths_tasks=0")
ARMS = {
    "base": study.Arm(CONFIG, ("config.rl.steps=0", "config.eval.before=True", *NO_MIX)),
    "text": study.Arm(CONFIG, WRITTEN + NO_MIX),
    "mixed": study.Arm(CONFIG, NO_MIX),
    "mixed_frozen": study.Arm(CONFIG, (*NO_MIX, "config.model.audio.frozen=True")),
    "text_maths": study.Arm(CONFIG, WRITTEN),
    "mixed_maths": study.Arm(CONFIG),
}
# What one arm has more than the other; the paper's claim is the first two.
PAIRS = (("mixed", "text"), ("mixed", "mixed_frozen"), ("text", "base"), ("mixed", "base"),
         ("mixed_maths", "text_maths"), ("mixed_maths", "mixed"), ("text_maths", "text"))
SPOKEN = {"clean": "clean", "noise": "white:10", "telephone": "telephone",
          "held out": "clean@held_out"}
CONDITIONS = {"read": "eval/", **{name: f"eval/spoken/{of}/" for name, of in SPOKEN.items()}}
EVALUATION = (f"config.eval.spoken={tuple(SPOKEN.values())}", "config.eval.every=0",
              "config.eval.before=False")
LENGTH = ("config.rl.steps=40", "config.rl.decay_steps=40", "config.eval.final_tasks=64")
# Warm starts that are made anew take three quarters of the steps of the package's.
VOICES = ("en-us", "en-gb-x-rp", "en", "en-us+f3", "en-029", *HELD_OUT)
SHORTER = (f"config.speech.voices={VOICES}", *(
    f"config.warm_start.speech_stage.{field}"
    for field in ("episodes=600", "value_steps=400", "steps=1200", "joint_steps=800")))
KEYS = ("pass^1", "pass^4", "clean_pass")
Record = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=study.ROOT / "runs/speech")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4],
                        help="warm starts")
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--size", default="", help="of configs/omni_noisy.py, e.g. tiny")
    parser.add_argument("--tag", default="", help="at the end of the two files' names")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, on cores of their own")
    parser.add_argument("--show", action="store_true", help="only print and draw what there is")
    parser.add_argument("fields", nargs="*", help="of every arm, e.g. config.rl.steps=20")
    args = parser.parse_args()
    path = HERE / f"results{args.tag}.jsonl"
    size = f":{args.size}" if args.size else ""
    arms = {n: dataclasses.replace(ARMS[n], config=f"{CONFIG}{size}") for n in args.arms}
    if not args.show:
        # Warm starts first: a base run makes each, and the arms of its seed find it.
        for one in (["base"], [name for name in arms if name != "base"]):
            for seeds in ([s for s in args.seeds if s == 0], [s for s in args.seeds if s]):
                full = () if args.size else (*LENGTH, *(SHORTER if any(seeds) else ()))
                study.make(
                    {name: arms[name] for name in one if name in arms}, seeds, args.out, path,
                    (*EVALUATION, *full, *args.fields), args.jobs,
                    seeded=("config.warm_start.seed",),
                )
    results = results_of(path)
    for condition in CONDITIONS:
        rows = in_condition(results, condition)
        print(f"\n**{condition}**, after training\n\n{study.means(rows, KEYS)}\n")
        print(study.comparisons(rows, KEYS, PAIRS))
    print(f"\n**by warm start**, pass^1 after training\n\n{by_warm_start(results)}")
    print(f"\n**read less spoken**, pass^1 after training\n\n{gaps(results)}")
    plot(results, HERE / f"plot{args.tag}.png")


def results_of(path: Path) -> list[Record]:
    """The results so far, arm by arm."""
    order = list(ARMS)
    return sorted(study.read(path), key=lambda r: (order.index(r["arm"]), r["seed"]))


def in_condition(results: list[Record], condition: str) -> list[Record]:
    """The same runs, their "trained" being the figures of one condition, named as the read ones."""
    prefix = CONDITIONS[condition]
    return [
        {**run, "trained": {
            f"eval/{name.removeprefix(prefix)}": value for name, value in run["trained"].items()
            if name.startswith(prefix)
        }} for run in results if f"{prefix}pass^1" in run["trained"]
    ]


def by_warm_start(results: list[Record]) -> str:
    """Markdown: pass^1 of every run by condition, then paired differences with 95% t-intervals."""
    lines = [f"| arm | warm start | {' | '.join(CONDITIONS)} |",
             "|---" * (len(CONDITIONS) + 2) + "|"]
    for run in results:
        cells = [f"{run['trained'][f'{prefix}pass^1']:.3f}" for prefix in CONDITIONS.values()]
        lines.append(f"| {run['arm']} | {run['seed']} | {' | '.join(cells)} |")
    for arm, other in PAIRS:
        found = [study.paired(in_condition(results, condition), "pass^1", arm, other)
                 for condition in CONDITIONS]
        cells = [str(t) for t in found if t]
        if found[0]:
            lines.append(f"| **{arm} less {other}** | {found[0].n} pairs | {' | '.join(cells)} |")
    return "\n".join(lines)


def gaps(results: list[Record]) -> str:
    """Markdown: a row per arm, pass^1 read less pass^1 spoken with a 95% t-interval."""
    rows = []
    for run in results:
        own = run["trained"]
        rows += [
            {"arm": f"{run['arm']} {one}", "seed": run["seed"], "trained": {"eval/pass^1": value}}
            for one, value in (("read", own["eval/pass^1"]), *(
                (name, own.get(f"{CONDITIONS[name]}pass^1")) for name in SPOKEN))
            if value is not None
        ]
    lines = [f"| arm | {' | '.join(SPOKEN)} |", "|---" * (len(SPOKEN) + 1) + "|"]
    for arm in dict.fromkeys(run["arm"] for run in results):
        cells = []
        for name in SPOKEN:
            found = study.paired(rows, "pass^1", f"{arm} read", f"{arm} {name}")
            cells.append(str(found or "-"))
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    return "\n".join(lines)


def plot(results: list[Record], path: Path) -> None:
    """pass^1 and pass^4 by condition and arm: bars are means over warm starts, dots single ones."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import numpy as np

    arms = [arm for arm in ARMS if any(r["arm"] == arm for r in results)]
    colors = dict(zip(ARMS, ("#999999", "#c44e52", "#dd8452", "#4c72b0", "#55a868", "#8172b3"),
                      strict=True))
    figure, axes = plt.subplots(2, 1, figsize=(11, 7), constrained_layout=True)
    for axis, measure in zip(axes, ("pass^1", "pass^4"), strict=True):
        width = 0.8 / max(len(arms), 1)
        for place, arm in enumerate(arms):
            for x, condition in enumerate(CONDITIONS):
                rows = [r["trained"][f"eval/{measure}"] for r in in_condition(results, condition)
                        if r["arm"] == arm]
                if not rows:
                    continue
                at = x + width * (place - (len(arms) - 1) / 2)
                axis.bar(at, np.mean(rows), 0.9 * width, color=colors[arm],
                         label=arm if x == 0 else None)
                axis.plot([at] * len(rows), rows, "k.", ms=4)
        axis.set(title=measure, xticks=range(len(CONDITIONS)), ylim=(0, 1),
                 xticklabels=list(CONDITIONS))
        axis.grid(alpha=0.3, axis="y")
    axes[0].legend(frameon=False, ncols=3)
    figure.suptitle("Held-out tasks after training; base: the warm starts; a dot for each")
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
