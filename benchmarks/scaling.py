"""Plans the presets for TPU slices and GPUs that are not there, and writes docs/scaling.md.

    python benchmarks/scaling.py [--models qwen3_8b …] [--count]

needs TPU's compiler (`pip install libtpu==0.0.42.1` with jax 0.10.2). A preset is compiled as it
is: its full length, its mesh; that takes a minute or two of one core. Rows that
`docs/scaling.jsonl` has already are kept, so a stopped run goes on where it was (`--fresh` begins
again).
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tarl_jax import plan
from tarl_jax.parallel.topologies import GPU_SHARE, is_gpu

DOCS = Path(__file__).parents[1] / "docs"
ROWS = (  # the slice that each preset is made for; qwen3_8b on others too
    ("qwen3_8b", "v5e:4x4"), ("qwen3_4b", "v5e:4x4"), ("qwen3_0_6b", "v5e:2x4"),
    ("qwen3_1_7b", "v5e:2x4"), ("qwen2_5_omni_3b", "v5e:4x4"), ("qwen2_5_omni_7b", "v5e:4x4"),
    ("qwen2_5_omni_7b", "v6e:4x4"),
    ("qwen3_8b", "v5p:2x2x2"), ("qwen3_8b", "v6e:8x8"), ("qwen3_8b", "v5e:8x8"),
    ("qwen3_8b_lora", "a100-80gb"), ("qwen3_8b_lora", "h100"), ("qwen3_8b_lora", "h200"),
    ("qwen3_8b", "h100:8"), ("qwen3_8b", "h200:8"), ("qwen3_0_6b", "h100:8"),
    ("qwen3_1_7b", "h100:8"), ("qwen3_4b", "h100:8"), ("qwen2_5_omni_3b", "h100:8"),
    ("qwen2_5_omni_7b", "h100:8"),
    ("qwen3_0_6b_16k", "a100-40gb:4"), ("qwen3_1_7b_16k", "a100-40gb:4"),
    ("qwen3_4b_16k", "a100-40gb:4"), ("qwen2_5_omni_3b_16k", "a100-40gb:4"),
    ("qwen3_8b_16k", "h100:4"), ("qwen2_5_omni_7b_16k", "h100:4"),
    ("qwen3_8b_lora_16k", "a100-40gb"),
    ("qwen3_0_6b_16k", "v5e:2x2"), ("qwen3_1_7b_16k", "v5e:2x2"), ("qwen3_4b_16k", "v5e:2x4"),
    ("qwen2_5_omni_3b_16k", "v5e:2x4"), ("qwen3_8b_16k", "v6e:2x4"),
    ("qwen2_5_omni_7b_16k", "v6e:2x4"),
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=sorted({model for model, _ in ROWS}))
    parser.add_argument("--topologies", nargs="+", default=sorted({where for _, where in ROWS}))
    parser.add_argument("--fresh", action="store_true", help="compile again what is there")
    parser.add_argument("--count", action="store_true",
                        help="count what is not there yet, which compiles nothing")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(plan_one(*args.one, compiled=not args.count)))
        return
    path = DOCS / "scaling.jsonl"
    rows = [] if args.fresh or not path.exists() else [
        json.loads(line) for line in path.read_text().splitlines()
    ]
    for model, topology in ROWS:
        # What was counted for a TPU is compiled by a later run.
        kept = [r for r in rows if (r["model"], r["topology"]) == (model, topology)]
        there = any(r["programs"] or args.count or is_gpu(topology) for r in kept)
        if there or model not in args.models or topology not in args.topologies:
            continue
        # A process each: the compiler keeps its memory, and each has as many devices as it counts.
        command = [sys.executable, __file__, "--one", model, topology, *["--count"] * args.count]
        done = subprocess.run(
            command, capture_output=True, text=True,
            env={k: v for k, v in os.environ.items() if k != "XLA_FLAGS"},
        )
        if done.returncode:
            sys.exit(f"{model} on {topology}: {done.stderr[-2000:]}")
        rows = [r for r in rows if r not in kept] + [json.loads(done.stdout.splitlines()[-1])]
        path.write_text("".join(json.dumps(r) + "\n" for r in rows))
        write_table(rows)
        print(line(rows[-1]), flush=True)
    write_table(rows)


def plan_one(model: str, topology: str, compiled: bool = True) -> dict[str, Any]:
    import dataclasses

    import jax

    from tarl_jax.config import from_config_dict
    from tarl_jax.config.presets import sized

    found = plan.report(from_config_dict(sized(model)), topology, compiled=compiled)
    return {
        "model": model, "jax": jax.__version__, "date": datetime.date.today().isoformat(),
        **dataclasses.asdict(found), "worst": found.worst, "fits": found.fits,
    }


def line(row: dict[str, Any]) -> str:
    held = {name: sum(gib for _, gib in of) for name, of in row["moments"]}

    def at(name: str) -> str:
        return f"{held[name]:.1f}" if name in held else ""

    mesh = " x ".join(f"{k} {v}" for k, v in row["mesh"].items()) or "one"
    seconds = sum(p["tracing"] + p["seconds"] for p in row["programs"])
    compiled = f"{len(row['programs'])} in {seconds:.0f} s" if row["programs"] else "counted"
    return (
        f"| {row['model']} | {row['topology']} | {mesh} | {row['rows']} x {row['length']} |"
        f" {at('the run begins')} | {at('rollouts: feed')} | {at('rollouts: decode')} |"
        f" {at('update: gradient')} | {at('update: apply')} | {row['memory_gib']:.1f} |"
        f" {'yes' if row['fits'] else 'no'} | {compiled} | {row['host_gib']:.1f} |"
    )


def write_table(rows: list[dict[str, Any]]) -> None:
    rows = sorted(rows, key=lambda r: ROWS.index((r["model"], r["topology"])))
    head = (
        "preset", "devices", "mesh of updates", "micro-batch", "at rest", "feeding", "writing",
        "gradient", "optimiser's step", "memory", "fits", "programs", "checkpoint",
    )  # fmt: skip
    text = f"""# What fits where

Made by

```bash
python benchmarks/scaling.py
```

with JAX {rows[-1]['jax']}, {rows[0]['date']} to {rows[-1]['date']}. Each preset is taken as it
is: episodes of 32,768 tokens (16,384 where its name ends so), its mesh, its slots. Figures are
GiB that a run holds on a chip at its moments, everything counted that is there then: parameters,
optimiser, gradients, copies for rollouts, cache, and what programs take for themselves. The last is
what TPU's own compiler says; for GPUs, and TPUs that nobody has compiled for yet, it is *counted*:
estimated by [`training/memory_estimate.py`](../tarl_jax/training/memory_estimate.py). The memory of
GPUs is {GPU_SHARE} of what the driver names (`XLA_PYTHON_CLIENT_MEM_FRACTION={GPU_SHARE}`). Of Omni
it is the decoder of the thinker. `python -m tarl_jax.plan` prints all moments, and what is held in
each. Seconds are those of tracing and compiling one program after the other, on whatever share of a
core was free. "Checkpoint" is what one that is being written takes of a host's memory.

| {' | '.join(head)} |
|{'---|' * len(head)}
"""
    text += "".join(line(r) + "\n" for r in rows)
    (DOCS / "scaling.md").write_text(text + compared(rows))


def compared(rows: list[dict[str, Any]]) -> str:
    """What is estimated for GPUs, of the programs that TPU's compiler has spoken of."""
    text = """
How far the estimate is off: of programs that were compiled for TPUs, GiB that they take beside
their arguments, estimated / compiled. XLA lays out weights anew for a TPU's loop where their widths
ask for it, which it is not expected to do for a GPU.

| preset | devices | gradient | measuring | feeding | writing |
|---|---|---|---|---|---|
"""
    for row in rows:
        if row["programs"] and row["estimated"]:
            own = {what.removesuffix("'s own"): gib for _, held in row["moments"]
                   for what, gib in held if what.endswith("'s own")}
            said = (f"{row['estimated'][name]:.2f} / {own[name]:.2f}"
                    for name in ("gradient", "measure", "feed", "decode"))
            text += f"| {row['model']} | {row['topology']} | {' | '.join(said)} |\n"
    return text


if __name__ == "__main__":
    main()
