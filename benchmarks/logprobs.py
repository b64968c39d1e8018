"""Memory and time of log-probabilities with their gradient: the chunked head against the plain one.

    python benchmarks/logprobs.py [--rows 4] [--length 2048] [--vocab 151936] [--width 256]

Each version runs in its own process, which reports the memory of the program's temporaries (by
XLA's own count) and the median time of a call. A third of the positions count, as in a dialogue,
and all of them (`--share`).
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--vocab", type=int, default=151_936)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--share", type=float, nargs="+", default=[0.33, 1.0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--version", choices=("plain", "chunked"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.version:
        print(json.dumps(measure(args.version, args, args.share[0])))
        return
    print(f"B = {args.rows}, S = {args.length}, V = {args.vocab}, D = {args.width}")
    for share in args.share:
        found = {v: start(v, share) for v in ("plain", "chunked")}
        plain, chunked = found["plain"], found["chunked"]
        print(f"{share:.0%} of the positions count:")
        for name, values in found.items():
            gib, seconds = values["bytes"] / 2**30, values["seconds"]
            print(f"  {name:8} temporaries {gib:6.2f} GiB   {seconds:6.2f} s")
        print(
            f"  memory 1/{plain['bytes'] / chunked['bytes']:.1f},"
            f" time x{chunked['seconds'] / plain['seconds']:.2f},"
            f" relative difference of the loss {relative(plain, chunked, 'loss'):.1e},"
            f" of the gradient's norm {relative(plain, chunked, 'norm'):.1e}"
        )


def relative(a: dict[str, float], b: dict[str, float], name: str) -> float:
    return abs(a[name] - b[name]) / abs(a[name])


def start(version: str, share: float) -> dict[str, float]:
    command = [sys.executable, __file__, *sys.argv[1:], "--version", version, "--share", str(share)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{version}: {done.stderr[-2000:]}")
    return json.loads(done.stdout)


def measure(version: str, args: argparse.Namespace, share: float) -> dict[str, float]:
    import jax
    import jax.numpy as jnp
    import numpy as np

    from tarl_jax.models.head import sampled_log_probs

    rng = np.random.default_rng(0)
    shape = args.rows, args.length
    params = {"embed": 0.05 * rng.standard_normal((args.vocab, args.width), np.float32)}
    hidden = rng.standard_normal((*shape, args.width), np.float32)
    tokens = rng.integers(0, args.vocab, shape)
    sampled = (rng.random(shape) < share).astype(np.float32)

    def plain(params, hidden):
        log_p = jax.nn.log_softmax(hidden[:, :-1] @ params["embed"].T, axis=-1)
        chosen = jnp.take_along_axis(log_p, tokens[:, 1:, None], axis=-1)[..., 0]
        entropy = -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)
        return sampled[:, 1:] * chosen, sampled[:, 1:] * entropy

    def chunked(params, hidden):
        return sampled_log_probs(params, hidden, tokens, sampled, 1.0)

    def loss(params, hidden):
        log_probs, entropy = (plain if version == "plain" else chunked)(params, hidden)
        return jnp.sum(log_probs) + 0.01 * jnp.sum(entropy)

    compiled = (
        jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).lower(params, hidden).compile()
    )
    memory = compiled.memory_analysis()
    seconds = []
    for _ in range(args.repeats):
        begun = time.perf_counter()
        value, gradient = jax.block_until_ready(compiled(params, hidden))
        seconds.append(time.perf_counter() - begun)
    return {
        "bytes": memory.temp_size_in_bytes,
        "seconds": statistics.median(seconds),
        "loss": float(value),
        "norm": float(sum(np.sum(np.square(g, dtype=np.float64))
                          for g in jax.tree.leaves(gradient))) ** 0.5,
    }


if __name__ == "__main__":
    main()
