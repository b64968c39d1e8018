"""How long a step waits for its checkpoint: until the state is in the host's memory, and no longer.

    python benchmarks/checkpoint.py [--millions 25] [--folder DIR] [--rounds 3]

A state of so many million parameters in float32, with Adam's two moments. "Whole" is when it is
written, brought to the disk and sealed with its checksums, for which a step would wait if nothing
went on meanwhile. On a CPU nothing is copied: the state that is written stays where it is, and the
next update makes a new one. Medians; prints Markdown.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import optax

from tarl_jax.config import CheckpointConfig
from tarl_jax.rl.update import TrainState
from tarl_jax.runs.checkpoint import Checkpoints


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--millions", type=float, nargs="+", default=[2.5, 25])
    parser.add_argument("--folder", help="on the disk that is measured")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}\n")
    print("| parameters | on the disk | a step waits | whole after |\n|---|---|---|---|")
    for millions in args.millions:
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            waits, whole, size = measure(int(millions * 1e6), Path(folder), args.rounds)
        print(f"| {millions:g}M | {size / 2**20:,.0f} MiB | {waits * 1e3:,.0f} ms |"
              f" {whole:.2f} s |", flush=True)


def measure(count: int, folder: Path, rounds: int) -> tuple[float, float, int]:
    """(seconds that a step waits, seconds until the checkpoint is whole, its bytes)."""
    wide = 512
    params = {f"layer {i}": jax.random.normal(jax.random.key(i), (count // 8 // wide, wide))
              for i in range(8)}
    state = TrainState(params, jax.jit(optax.adamw(1e-3).init)(params))
    state = jax.tree.map(  # of which nothing can be compressed
        lambda x: jax.random.normal(jax.random.key(9), x.shape, x.dtype) if x.ndim else x, state
    )
    checkpoints = Checkpoints(folder, CheckpointConfig(keep=1))
    step = jax.jit(lambda s: jax.tree.map(lambda x: x + jnp.ones((), x.dtype), s), donate_argnums=0)
    waits, whole = [], []
    for number in range(rounds + 1):  # the first one loads what writes
        state = jax.block_until_ready(step(state))
        begun = time.perf_counter()
        checkpoints.save(number, state, {})
        waits.append(time.perf_counter() - begun)
        if error := checkpoints.failure(wait=True):
            raise error
        whole.append(time.perf_counter() - begun)
    checkpoints.close()
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return statistics.median(waits[1:]), statistics.median(whole[1:]), size


if __name__ == "__main__":
    main()
