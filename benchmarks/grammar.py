"""Time and memory of the grammar of tool calls for a vocabulary of Qwen3's size.

    python benchmarks/grammar.py [--vocab 151936] [--rows 64]

The vocabulary is made here: all bytes, the commonest words, runs of punctuation and runs of white
space in the source of Python's standard library, random Chinese words, and their parts that are
not whole characters. The time of a step on the device is the median of 20 calls.
"""

from __future__ import annotations

import argparse
import collections
import random
import re
import statistics
import sysconfig
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from tarl_jax.config import ShopConfig
from tarl_jax.rollout import grammar
from tarl_jax.sandbox import shop
from tarl_jax.sandbox.retail import retail_domain
from tarl_jax.text.call_syntax import automaton
from tarl_jax.text.tokenizer import IM_END

SPECIAL = (IM_END, "<|im_start|>", "<think>", "</think>", "<tool_call>", "</tool_call>")
PARTS = re.compile(r" ?[A-Za-z_]+|\d| ?[^\sA-Za-z_\d]+\n*|\s+")  # much as Qwen's own rule


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vocab", type=int, default=151_936)
    parser.add_argument("--rows", type=int, default=64)
    args = parser.parse_args()
    names = tuple(sorted(retail_domain(shop.make_shop(ShopConfig())).tools))
    tokenizer = Made(args.vocab - 267)  # as many ids as Qwen3's embedding has in excess
    begun = time.process_time(), time.perf_counter()
    states, _ = automaton(names)
    between = time.process_time()
    rules = grammar.build(tokenizer, names, args.vocab)
    cpu, wall = time.process_time() - begun[0], time.perf_counter() - begun[1]
    print(f"{len(names)} tools, V = {args.vocab}, backend {jax.default_backend()}")
    print(
        f"states {rules.next_state.shape[0]} of {len(states)}, classes {rules.next_state.shape[1]}"
    )
    print(
        f"build {cpu:.1f} s of CPU ({between - begun[0]:.1f} s the automaton over bytes),"
        f" {wall:.1f} s of wall time"
    )
    for name in ("next_state", "token_class", "words"):
        leaf = getattr(rules, name)
        print(f"  {name:12} {leaf.dtype!s:7} {leaf.nbytes / 1e6:6.1f} MB")
    print(f"  in all               {sum(x.nbytes for x in jax.tree.leaves(rules)) / 1e6:6.1f} MB")
    print(f"a step of {args.rows} rows: {step_seconds(rules, args.rows) * 1e3:.2f} ms")


class Made:
    """A byte-level vocabulary of `size` ids, as `grammar.build` needs it."""

    stop_id = 0
    special_ids = frozenset(range(len(SPECIAL)))

    def __init__(self, size: int):
        pieces = [text.encode() for text in SPECIAL] + [bytes([byte]) for byte in range(256)]
        rng = random.Random(0)
        words = ["".join(chr(rng.randrange(0x4E00, 0x9FA5)) for _ in range(2)) for _ in range(9000)]
        cut = [part for word in words for part in (word.encode()[:4], word.encode()[2:])]
        pieces = list(dict.fromkeys([*pieces, *(word.encode() for word in words), *cut]))
        common = (text.encode() for text in common_parts())
        known = set(pieces)
        pieces += [text for text in common if text not in known]
        # Where the library has too few of them, pairs of words, which behave as words do.
        pieces += [b" %x w" % i for i in range(max(0, size - len(pieces)))]
        self._pieces = pieces[:size]

    def pieces(self) -> list[bytes]:
        return self._pieces

    def encode(self, text: str) -> list[int]:
        return [len(SPECIAL) + byte for byte in text.encode()]

    def encode_markup(self, text: str) -> tuple[int, ...]:
        found = re.findall("|".join(map(re.escape, SPECIAL)) + "|\n", text)
        return tuple(SPECIAL.index(t) if t in SPECIAL else self.encode(t)[0] for t in found)


def common_parts() -> list[str]:
    """Parts of source text and the beginnings of those parts, the commonest first."""
    counts: collections.Counter[str] = collections.Counter()
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        counts.update(PARTS.findall(path.read_text("utf-8", "ignore")))
    grown: collections.Counter[str] = collections.Counter()
    for part, count in counts.items():
        for end in range(2, min(len(part), 16) + 1):
            grown[part[:end]] += count
    return [part for part, _ in grown.most_common()]


def step_seconds(rules: grammar.Grammar, rows: int) -> float:
    rules = jax.device_put(rules)
    rng = np.random.default_rng(0)
    states = jnp.asarray(rng.integers(0, rules.next_state.shape[0], rows))

    @jax.jit
    def step(rules, states, scores):
        kept = jnp.where(grammar.allowed(rules, states), scores, -jnp.inf)
        tokens = jnp.argmax(kept, axis=-1)
        return tokens, grammar.advance(rules, states, tokens)

    scores = jnp.zeros((rows, rules.token_class.shape[0]), jnp.float32)
    taken = []
    for _ in range(21):
        begun = time.perf_counter()
        jax.block_until_ready(step(rules, states, scores))
        taken.append(time.perf_counter() - begun)
    return statistics.median(taken[1:])


if __name__ == "__main__":
    main()
