"""Slow users: does the device wait for them, and what does a longer dialogue cost?

    python benchmarks/latency.py

First table: dialogues whose users answer after 0, 0.5 and 2 seconds; tokens per second, as a share
of those at 0 seconds, once with as many dialogues under way as slots (an eighth of the dialogues,
for it takes long) and once with enough of them, their caches parked or made again. Second table:
seconds per dialogue of 8, 16 and 32 turns; a cost in proportion to the turns keeps the last column
at 1 (attention over a longer context adds to it).
Random weights, float32, a 4.2M-parameter decoder.
"""

from __future__ import annotations

import argparse
import time

import jax
import numpy as np

from tarl_jax.config import ModelConfig, RolloutConfig
from tarl_jax.models import decoder
from tarl_jax.parallel.mesh import make_mesh
from tarl_jax.rollout.engine import Engine
from tarl_jax.rollout.running import EngineStats
from tarl_jax.rollout.workers import Answer, Turn

MODEL = ModelConfig(
    d_model=256, num_layers=4, num_heads=4, num_kv_heads=2, head_dim=64, d_ff=768, rope_theta=1e6,
)
VOCAB, TOKENS = 4096, 24  # of a turn, and of an answer


class Play:
    """A dialogue of `turns`, whose user takes `seconds` to answer."""

    shared = 0

    def __init__(self, seed: int, turns: int, seconds: float):
        self.seed, self.turns, self.seconds = seed, turns, seconds
        self.outside = seconds > 0

    def start(self) -> list[int]:
        time.sleep(self.seconds)
        return np.random.default_rng(self.seed).integers(10, VOCAB, TOKENS).tolist()

    def turn(self, turn: Turn) -> Answer | None:
        self.turns -= 1
        if not self.turns:
            return None
        time.sleep(self.seconds)
        return Answer(np.random.default_rng(self.seed).integers(10, VOCAB, TOKENS).tolist())


def run(
    args: argparse.Namespace, dialogues: int, turns: int, seconds: float, **fields: int
) -> EngineStats:
    config = RolloutConfig(
        slots=args.slots, max_turn_tokens=TOKENS, max_episode_tokens=2 * TOKENS * turns,
        share_prefix=0, **fields,
    )
    engine = Engine(MODEL, config, -1, make_mesh(devices=jax.devices()[:1]))
    params = decoder.init_params(MODEL, VOCAB, jax.random.key(0))
    engine.programs.compile(params)
    engine.run(params, [Play(i, 2, 0.0) for i in range(args.slots)], 1.0)
    return engine.run(params, [Play(i, turns, seconds) for i in range(dialogues)], 1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slots", type=int, default=32)
    parser.add_argument("--dialogues", type=int, default=1024)
    parser.add_argument("--turns", type=int, default=8)
    parser.add_argument("--seconds", type=float, nargs="+", default=[0.0, 0.5, 2.0])
    args = parser.parse_args()
    ahead = args.dialogues
    ways = {
        "as many as slots": (ahead // 8 or 1, {"in_flight": args.slots}),
        "more, caches parked": (ahead, {"in_flight": ahead, "parked": ahead}),
        "more, caches made again": (ahead, {"in_flight": ahead}),
    }
    print(f"{args.dialogues} dialogues of {args.turns} turns, {args.slots} slots")
    at_once = 0.0
    for seconds in args.seconds:
        at_0 = {"answered at once": (ahead, {})}
        for name, (dialogues, fields) in (ways if seconds else at_0).items():
            stats = run(args, dialogues, args.turns, seconds, **fields)
            at_once = at_once or stats.tokens_per_second
            print(
                f"  users take {seconds:3.1f} s, {name:24} {stats.tokens_per_second:7,.0f} tokens/s"
                f"  {stats.tokens_per_second / at_once:6.1%}  {stats.seconds:5.1f} s:"
                f" waits {stats.wait_seconds:.1f}, feeds {stats.extend_seconds:.1f}, samples"
                f" {stats.decode_seconds:.1f}, slots used"
                f" {stats.sampled_tokens / stats.row_steps:.0%}", flush=True,
            )
    print("turns   seconds per dialogue   per turn, against 8")
    shortest = 0.0
    for turns in (8, 16, 32):
        dialogues = args.slots * 4
        seconds = run(args, dialogues, turns, 0.0).seconds / dialogues
        shortest = shortest or seconds / turns
        print(f"{turns:5}   {seconds:20.3f}   {seconds / turns / shortest:18.2f}", flush=True)


if __name__ == "__main__":
    main()
