"""How much of an accelerator the update and decoding use.

    python benchmarks/gpu.py [--models qwen3_0_6b qwen3_8b_lora] [--tokens 8192 32768]

By the programs that a run has there: caches in pages. Random weights in bfloat16, adapters where a
preset has them. A line is printed after each part, so that what has run is not lost; on an H200 the
whole is to take 8 minutes. Decoding: bytes of weights and cache that a step must read, over time
and the copy ceiling measured here. MFU of the update: floating-point operations of forward and
backward pass (recomputation not counted, nor gradients of frozen weights) over time and the
matrix-product ceiling measured here. Prints Markdown. To try the script on a CPU:

    python benchmarks/gpu.py --models qwen3_0_6b --layers 1 --vocab 1024 --slots 4 --context 256 \\
        --tokens 512 --sequence 256 --ceiling 512
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

from tarl_jax.config import MeshConfig, ModelConfig, RolloutConfig, from_config_dict
from tarl_jax.config.presets import sized
from tarl_jax.models import decoder
from tarl_jax.parallel.mesh import make_mesh, rollout_mesh
from tarl_jax.plan import update_flops
from tarl_jax.rl.update import Updater
from tarl_jax.rollout.paged_compiled import BURST, PagedPrograms
from tarl_jax.types import Batch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["qwen3_0_6b", "qwen3_8b_lora"])
    parser.add_argument("--tokens", type=int, nargs="+", default=[8192, 32_768],
                        help="of a micro-batch, which is one row")
    parser.add_argument("--micro-batches", type=int, default=2, help="of an update")
    parser.add_argument("--sequence", type=int, default=4096, help="tokens of each in a row")
    parser.add_argument("--context", type=int, default=2048, help="tokens of a row that decodes")
    parser.add_argument("--slots", type=int, default=64, help="rows that decode")
    parser.add_argument("--quantise", default="", choices=("", "int8", "int8_cache", "int8_both"))
    parser.add_argument("--remat", default="full", choices=("none", "dots", "full"))
    parser.add_argument("--attention", default="auto", choices=("auto", "xla", "cudnn"))
    parser.add_argument("--layers", type=int, default=0, help="of so many alone; 0: all")
    parser.add_argument("--vocab", type=int, default=0, help="of so many ids; 0: all")
    parser.add_argument("--ceiling", type=int, default=8192, help="side of the large matrices")
    args = parser.parse_args()
    device = jax.devices()[0]
    matmul, copy = matmul_ceiling(args.ceiling), copy_ceiling(16 * args.ceiling**2)
    print(f"{device.device_kind}, jax {jax.__version__}: matrix products"
          f" {matmul / 1e12:.3g} Tflop/s (bfloat16, {args.ceiling}^3), copies"
          f" {copy / 1e9:.0f} GB/s\n")
    print("| model | part | seconds | share of the ceiling |\n|---|---|---|---|", flush=True)
    for name in args.models:
        model = model_of(name, args)
        seconds, share = decode(model, args, copy)
        show(name, f"decode step, {args.slots} rows at {args.context} tokens", seconds, share)
        for tokens in args.tokens:
            seconds, share = update(name, model, tokens, args, matmul)
            show(name, f"update of {args.micro_batches} x {tokens} tokens", seconds, share)


def show(name: str, part: str, seconds: float, share: float) -> None:
    print(f"| {name} | {part} | {seconds:.4f} | {share:.1%} |", flush=True)


def model_of(name: str, args: argparse.Namespace) -> ModelConfig:
    model = from_config_dict(sized(name)).model
    return dataclasses.replace(
        model, remat=args.remat, attention=args.attention,
        num_layers=args.layers or model.num_layers, vocab_size=args.vocab or model.vocab_size,
    )


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


def update(
    name: str, model: ModelConfig, tokens: int, args: argparse.Namespace, ceiling: float
) -> tuple[float, float]:
    """(seconds of an optimiser step on packed micro-batches, its share of the ceiling)."""
    config = from_config_dict(sized(name))
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    updater = Updater(model, model.vocab_size, config.rl, 1.0, mesh)
    held = [updater.init(updater.random(jax.random.key(0)), give=True)]
    rng = np.random.default_rng(0)
    sampled = (rng.random((1, tokens)) < 0.3).astype(np.float32)
    segments = np.arange(tokens) // args.sequence
    sampled[:, np.diff(segments, prepend=-1) != 0] = 0
    batch = Batch(
        tokens=rng.integers(0, model.vocab_size, (1, tokens)).astype(np.int32),
        sampled=sampled, log_probs=-5 * sampled, advantages=sampled,
        segments=segments[None].astype(np.int32),
    )
    batches = [batch] * args.micro_batches

    def run() -> Any:
        held[0], _ = updater.update(held[0], batches, None)
        return held[0].params

    seconds = timed(run, 3)
    # A sequence attends to itself alone, and only sampled positions pass the head.
    whole = update_flops(model, 0, max(tokens // args.sequence, 1), args.sequence)
    attention = 6 * tokens * model.num_layers * model.num_heads * model.head_dim * args.sequence
    head = 6 * sampled.sum() * model.d_model * model.vocab_size
    weights = (whole - attention + head) * (2 / 3 if model.lora.rank else 1)
    return seconds, args.micro_batches * (weights + attention) / seconds / ceiling


def decode(model: ModelConfig, args: argparse.Namespace, ceiling: float) -> tuple[float, float]:
    """(seconds of one decode step at full pages, its share of the copy ceiling)."""
    steps = min(BURST, args.context // 2)
    rollout = RolloutConfig(
        slots=args.slots, max_turn_tokens=steps, max_episode_tokens=args.context, cache="pages",
        cache_tokens=args.slots * args.context, quantise=args.quantise,
    )
    programs = PagedPrograms(model, rollout, -1, rollout_mesh(MeshConfig(), jax.devices()[:1]))
    params = programs.prepare(jax.jit(lambda key: decoder.cast(
        decoder.init_params(model, model.vocab_size, key), model.dtype
    ))(jax.random.key(0)))
    flat, writers, _ = programs.nothing(args.slots)
    used = -(-args.context // programs.size)
    flat.tables[:, :used] = 1 + np.arange(args.slots * used).reshape(-1, used)
    flat.positions[:] = args.context - steps - 1
    flat.count[:], flat.begins[:] = args.slots, np.arange(args.slots + 1)
    writers.seeds[:], writers.room[:] = np.arange(args.slots), steps
    held = [programs.empty()]

    def once() -> Any:
        held[0], out = programs.decode(params, held[0], flat, writers, 0)
        return out.tokens

    seconds = timed(once) / steps
    weights = sum(x.nbytes for x in jax.tree.leaves(params))
    if not model.tie_embeddings:
        weights -= params["embed"].nbytes  # of which a step reads a few rows
    pages = sum(x.nbytes for x in jax.tree.leaves(held[0])) / programs.pages
    read = pages * args.slots * (args.context - steps / 2) / programs.size
    return seconds, (weights + read) / seconds / ceiling


if __name__ == "__main__":
    main()
