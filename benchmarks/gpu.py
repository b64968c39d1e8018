"""How much of an accelerator the update and the decode step use.

    python benchmarks/gpu.py [--models qwen3_0_6b qwen3_1_7b qwen3_4b] [--tokens 8192]

Random weights in bfloat16 activations. MFU of the update: floating-point operations of forward and
backward pass (recomputation not counted) over time and the matrix-product ceiling measured here.
Decode: bytes of weights and cache that a step must read, over time and the copy ceiling measured
here. Prints Markdown.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tarl_jax.config import MeshConfig, RolloutConfig, from_config_dict
from tarl_jax.config.presets import sized
from tarl_jax.models import decoder
from tarl_jax.models.cache import empty_cache
from tarl_jax.parallel.mesh import make_mesh, rollout_mesh
from tarl_jax.plan import update_flops
from tarl_jax.rl.update import Updater
from tarl_jax.rollout import programs
from tarl_jax.rollout.sampling import EVERYTHING
from tarl_jax.types import Batch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["qwen3_0_6b", "qwen3_1_7b", "qwen3_4b"])
    parser.add_argument("--tokens", type=int, default=8192, help="of a micro-batch")
    parser.add_argument("--micro-batches", type=int, default=4, help="of an update")
    parser.add_argument("--packed", type=int, default=4, help="sequences in a row")
    parser.add_argument("--length", type=int, default=4096, help="of a row, and of the cache")
    parser.add_argument("--slots", type=int, default=64, help="rows that decode")
    parser.add_argument("--remat", default="full", choices=("none", "dots", "full"))
    parser.add_argument("--attention", default="auto", choices=("auto", "xla", "cudnn"))
    args = parser.parse_args()
    device = jax.devices()[0]
    matmul, copy = matmul_ceiling(), copy_ceiling()
    print(f"{device.device_kind}, jax {jax.__version__}: matrix products"
          f" {matmul / 1e12:.0f} Tflop/s (bfloat16, 8192^3), copies {copy / 1e9:.0f} GB/s\n")
    print("| model | update, s | MFU | decode step, ms | share of the copy ceiling |")
    print("|---|---|---|---|---|")
    for name in args.models:
        seconds, share = update(name, args, matmul)
        step, bandwidth = decode(name, args, copy)
        print(f"| {name} | {seconds:.3f} | {share:.1%} | {step * 1e3:.2f} | {bandwidth:.1%} |",
              flush=True)


def timed(run: Callable[[], Any], repeats: int = 5) -> float:
    """Median seconds of a call, after one that compiles."""
    jax.block_until_ready(run())
    seconds = []
    for _ in range(repeats):
        begun = time.perf_counter()
        jax.block_until_ready(run())
        seconds.append(time.perf_counter() - begun)
    return statistics.median(seconds)


def matmul_ceiling(size: int = 8192) -> float:
    """Floating-point operations a second of one large product."""
    a = jnp.ones((size, size), jnp.bfloat16)
    product = jax.jit(lambda a: a @ a)
    return 2 * size**3 / timed(lambda: product(a), 10)


def copy_ceiling(size: int = 2**30) -> float:
    """Bytes a second, read and written, of one large copy."""
    a = jnp.zeros(size, jnp.bfloat16)
    add = jax.jit(lambda a: a + 1)
    return 2 * 2 * size / timed(lambda: add(a), 10)


def update(name: str, args: argparse.Namespace, ceiling: float) -> tuple[float, float]:
    """(seconds of an optimiser step on packed micro-batches, its share of the ceiling)."""
    config = from_config_dict(sized(name))
    model = dataclasses.replace(config.model, remat=args.remat, attention=args.attention)
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    updater = Updater(model, model.vocab_size, config.rl, 1.0, mesh)
    held = [updater.init(updater.random(jax.random.key(0)))]
    rows, length = args.tokens // args.length, args.length
    rng = np.random.default_rng(0)
    sampled = (rng.random((rows, length)) < 0.3).astype(np.float32)
    segments = np.repeat(np.arange(args.packed), -(-length // args.packed))[:length]
    sampled[:, np.diff(segments, prepend=-1) != 0] = 0
    batch = Batch(
        tokens=rng.integers(0, model.vocab_size, (rows, length)).astype(np.int32),
        sampled=sampled, log_probs=-5 * sampled, advantages=sampled,
        segments=np.tile(segments, (rows, 1)).astype(np.int32),
    )
    batches = [batch] * args.micro_batches

    def run() -> Any:
        held[0], _ = updater.update(held[0], batches, None)
        return held[0].params

    seconds = timed(run)
    # A sequence attends to itself alone, and only sampled positions pass the head.
    attended = length // args.packed
    flops = update_flops(model, 0, rows * args.packed, attended)
    flops += 6 * sampled.sum() * model.d_model * model.vocab_size
    return seconds, args.micro_batches * flops / seconds / ceiling


def decode(name: str, args: argparse.Namespace, ceiling: float) -> tuple[float, float]:
    """(seconds of one decode step at a full cache, its share of the copy ceiling)."""
    config = from_config_dict(sized(name))
    model = config.model
    mesh = rollout_mesh(MeshConfig(), jax.devices()[:1])
    make = jax.jit(lambda key: decoder.unstack(
        decoder.cast(decoder.init_params(model, model.vocab_size, key), model.dtype)
    ))
    params = make(jax.random.key(0))
    steps = RolloutConfig().max_turn_tokens
    run = jax.jit(
        lambda params, state, room: programs.decode(
            model, (-1,), 0, steps, args.length, params, None, state, room, jnp.int32(0),
            jnp.float32(1),
            EVERYTHING,
        ),
        donate_argnums=1,
    )
    room = jnp.full(args.slots, steps, jnp.int32)
    held = [programs.EngineState(
        cache=empty_cache(model, args.slots, args.length),
        lengths=jnp.full(args.slots, args.length - steps - 1, jnp.int32),
        last=jnp.zeros(args.slots, jnp.int32),
        seeds=jnp.arange(args.slots, dtype=jnp.uint32),
        dropped=jnp.zeros(args.slots, jnp.int32),
        syntax=jnp.zeros(args.slots, jnp.int32),
    )]

    def once() -> Any:
        state, out = run(params, held[0], room)
        held[0] = state.replace(lengths=state.lengths - steps)
        return out

    with jax.set_mesh(mesh):
        seconds = timed(once) / steps
    weights = sum(x.nbytes for x in jax.tree.leaves(params))
    if not model.tie_embeddings:
        weights -= params["embed"].nbytes  # of which a step reads a few rows
    cache = sum(x.nbytes for x in jax.tree.leaves(held[0].cache))
    return seconds, (weights + cache) / seconds / ceiling


if __name__ == "__main__":
    main()
