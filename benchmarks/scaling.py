"""Compiles the large presets for real TPU slices, without having one, and writes docs/scaling.md.

    python benchmarks/scaling.py

needs TPU's compiler (`pip install libtpu==0.0.42.1` with jax 0.10.2). One compile is minutes of one
core; rows that `docs/scaling.jsonl` has already are kept, so a stopped run goes on where it was
(`--fresh` begins again). A micro-batch has one row per chip that splits rows.
"""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tarl_jax import plan

DOCS = Path(__file__).parents[1] / "docs"
SLICES = (
    ("v5e:4x4", 1), ("v5e:8x8", 1), ("v5e:16x16", 1), ("v5p:2x2x2", 1), ("v5p:4x4x4", 1),
    ("v6e:8x8", 1), ("v6e:16x16", 1), ("v5e:8x8", 2),
)  # fmt: skip
ROWS = (
    *(("qwen3_8b", *where) for where in SLICES),
    *(("qwen2_5_omni_7b", *where) for where in SLICES),
    # The slice that each of the other presets is made for.
    ("qwen3_0_6b", "v5e:2x4", 1), ("qwen3_1_7b", "v5e:2x4", 1), ("qwen3_4b", "v5e:4x4", 1),
    ("qwen2_5_omni_3b", "v5e:4x4", 1),
)  # fmt: skip
LENGTH = 8192
MISSING = "\nSlices that are not listed have not been compiled yet.\n"

SEARCH = """
## The largest micro-batch

```bash
python -m tarl_jax.plan --config=configs/grpo_tarl.py:qwen3_0_6b --topology=v5e:2x4 --search
```

looks for the longest row that the update holds, one per chip, up to 65,536 tokens, and then for
more rows of that length. Seen on 2026-11-21 with JAX 0.10.2: 16 x 65,536 tokens fit, 32 x 65,536 do
not (five compilations; eight minutes on two cores with other work).
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=sorted({model for model, *_ in ROWS}))
    parser.add_argument("--fresh", action="store_true", help="compile again what is there")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(compile_one(args.one[0], args.one[1], int(args.one[2]))))
        return
    path = DOCS / "scaling.jsonl"
    rows = [] if args.fresh or not path.exists() else [
        json.loads(line) for line in path.read_text().splitlines()
    ]
    for model, topology, slices in ROWS:
        there = any((r["model"], r["slice"], r["slices"]) == (model, topology, slices)
                    for r in rows)
        if there or model not in args.models:
            continue
        # A process each: the compiler keeps its memory.
        done = subprocess.run(
            [sys.executable, __file__, "--one", model, topology, str(slices)],
            capture_output=True, text=True,
        )
        if done.returncode:
            sys.exit(f"{model} on {slices} x {topology}: {done.stderr[-2000:]}")
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        path.write_text("".join(json.dumps(r) + "\n" for r in rows))
        write_table(rows)
        print(line(rows[-1]), flush=True)


def compile_one(model: str, topology: str, slices: int) -> dict[str, Any]:
    import dataclasses

    import jax

    from tarl_jax.config import from_config_dict
    from tarl_jax.config.presets import sized
    from tarl_jax.parallel.mesh import make_mesh, row_shards

    config = from_config_dict(sized(model))
    devices = plan.topology_devices(topology, slices)
    # Parameters are split over one slice, or 64 chips of it; beyond that are copies.
    fsdp = min(len(devices) // slices, 64)
    mesh = dataclasses.replace(config.mesh, data=len(devices) // fsdp, fsdp=fsdp)
    rows = row_shards(make_mesh(mesh, devices))
    # Slots follow the chips.
    slots = config.rollout.slots * len(devices) // 16
    rollout = dataclasses.replace(config.rollout, slots=max(slots, len(devices) // 4))
    config = dataclasses.replace(config, mesh=mesh, rollout=rollout)
    found = plan.report(config, topology, slices, (rows, LENGTH))
    return {
        "model": model,
        "slice": topology,
        "slices": slices,
        "slots": rollout.slots,
        "jax": jax.__version__,
        "date": datetime.date.today().isoformat(),
        **dataclasses.asdict(found),
        "fits": found.fits,
    }


def line(row: dict[str, Any]) -> str:
    programs = {p["name"]: p for p in row["programs"]}

    def peak(name: str) -> str:
        p = programs[name]
        total = p["peak_gib"] + p["resident_gib"]
        return "out of memory" if p["peak_gib"] == float("inf") else f"{total:.1f}"

    collectives = ", ".join(
        f"{n} {kind}" for kind, n in programs["gradient"]["collectives"].items()
    )
    name = row["slice"] if row["slices"] == 1 else f"{row['slices']} x {row['slice']}"
    mesh = " x ".join(f"{k} {v}" for k, v in row["mesh"].items())
    return (
        f"| {row['model']} | {name} | {row['chips']} | {mesh} | {row['parameters_gib']:.2f} |"
        f" {row['optimizer_gib']:.2f} | {row['rows']} x {row['length']} | {row['tflop']:.0f} |"
        f" {peak('gradient')} | {row['slots']} | {peak('prefill')} | {peak('decode')} |"
        f" {row['memory_gib']} | {'yes' if row['fits'] else 'no'} | {collectives} |"
    )


def write_table(rows: list[dict[str, Any]]) -> None:
    complete = len(rows) >= len(ROWS)
    head = (
        "model", "slice", "chips", "mesh", "parameters", "optimiser", "micro-batch", "Tflop",
        "update", "slots", "prefill", "decode", "HBM", "fits", "collectives of the update",
    )  # fmt: skip
    text = f"""# What fits on which slice

Compiled for the slice by TPU's own compiler, without running. Made by

```bash
python benchmarks/scaling.py
```

on {rows[-1]['date']} with JAX {rows[-1]['jax']}. Sizes are GiB per chip. *update*, *prefill* and
*decode* are the highest memory of that program together with what stays in memory meanwhile (the
optimiser while gradients are computed; parameters and optimiser during rollouts). Tflop are those
of one micro-batch per chip, recomputation not counted. Every layer is recomputed in the backward
pass (`remat=full`); parameters and optimiser are float32, activations bfloat16; rows are packed;
the cache holds {LENGTH:,} tokens for each slot. Collectives are counted as they stand in the
program: those in the loop over layers once. Of Omni it is the decoder of the thinker.
{"" if complete else MISSING}
| {' | '.join(head)} |
|{'---|' * len(head)}
"""
    (DOCS / "scaling.md").write_text(text + "".join(line(r) + "\n" for r in rows) + SEARCH)


if __name__ == "__main__":
    main()
