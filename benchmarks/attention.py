"""Kinds of attention on packed rows, forward and with gradients.

    python benchmarks/attention.py [--rows 2] [--length 4096] [--packed 4]

bfloat16, heads of Qwen3-0.6B (16 and 8, of width 128). Each kind that the device has is compared
with the one that runs anywhere (largest absolute difference of outputs and gradients), then timed:
medians of ten calls. `cudnn, one sequence` does another thing, faster: it shows what the mask of
packed rows costs. Prints Markdown.
"""

from __future__ import annotations

import argparse
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from gpu import timed

from tarl_jax.models.attention import causal_attention

HEADS, KV_HEADS, WIDTH = 16, 8, 128
KINDS = {"cpu": (), "gpu": ("cudnn",), "tpu": ("splash",)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=2)
    parser.add_argument("--length", type=int, default=4096)
    parser.add_argument("--packed", type=int, default=4, help="sequences in a row")
    args = parser.parse_args()
    keys = jax.random.split(jax.random.key(0), 4)
    q, k, v, slope = (
        jax.random.normal(key, (args.rows, args.length, heads, WIDTH), jnp.bfloat16)
        for key, heads in zip(keys, (HEADS, KV_HEADS, KV_HEADS, HEADS), strict=True)
    )
    number = np.repeat(np.arange(args.packed), -(-args.length // args.packed))[: args.length]
    segments = jnp.tile(jnp.array(number, jnp.int32), (args.rows, 1))
    device = jax.devices()[0]
    print(f"{device.device_kind}, jax {jax.__version__}: {args.rows} rows of {args.length} tokens,"
          f" {args.packed} sequences each\n")
    print("| kind | forward, ms | with gradients, ms | differs from xla by |")
    print("|---|---|---|---|")
    others = KINDS[device.platform]
    ways = {"xla": ("xla", segments), **{kind: (kind, segments) for kind in others}}
    ways |= {f"{kind}, one sequence": (kind, None) for kind in others}
    expected: list[np.ndarray] = []
    for name, (kind, numbers) in ways.items():

        def attend(q: Any, k: Any, v: Any, kind=kind, numbers=numbers) -> Any:
            return causal_attention(q, k, v, numbers, kind)

        def both(q: Any, k: Any, v: Any, attend=attend) -> Any:
            out, back = jax.vjp(attend, q, k, v)
            return out, *back(slope)

        forward, whole = jax.jit(attend), jax.jit(both)
        found = [np.asarray(x, np.float32) for x in whole(q, k, v)]
        expected = expected or found
        gap = max(np.abs(a - b).max() for a, b in zip(found, expected, strict=True))
        apart = "-" if numbers is None else f"{gap:.3g}"
        times = [1e3 * timed(functools.partial(f, q, k, v), 10) for f in (forward, whole)]
        print(f"| {name} | {times[0]:.2f} | {times[1]:.2f} | {apart} |", flush=True)


if __name__ == "__main__":
    main()
