"""Dialogues of eight turns: our engine against google-tunix's sampler and Hugging Face's generate.

    python3 -m venv TUNIX && TUNIX/bin/pip install google-tunix==0.1.7 "jax==0.10.2"
    python benchmarks/rollout.py --peer TUNIX/bin/python       # needs torch beside ours

Each turn samples 75 tokens and is answered with 75 observed ones; prompts have 75. No turn ends
early, so all three do the same work. The peers are called as a trainer built on them calls them:
with the whole dialogue so far, once per turn, at a fixed padded length (the shortest that holds it,
so nothing compiles twice). A second table is of one turn alone (256 prompt, 128 new tokens), a
third of groups of eight that share their prompt of 2,048 tokens. Float32 and random weights; each
version runs in a process of its own, which waits while another measures; ratios are of medians.

With --adapters ours is measured against itself with adapters of rank 8 beside each matrix, as
rollouts of a policy that trains them have it (nothing is merged), in place of the others.

The roofline is the time that the products of every token would take at the speed of one large
matrix product on this machine: no engine can be faster than that.
"""

from __future__ import annotations

import argparse
import os
import sys
import time

import in_turns

TURN, TURNS = 75, 8
ALONE = (256, 128)  # prompt, new tokens of the single turn
GROUP = (8, 2048, 64)  # members, prompt, new tokens
# name: layers, width, query heads, key heads, head width, feed-forward, vocabulary, rows
SHAPES = {
    "4.2M": (4, 256, 4, 2, 64, 768, 4096, 32),
    "78.7M": (8, 768, 12, 4, 64, 2048, 36_992, 8),
}
WORK = ("dialogue", "turn", "group")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", help="Python of an environment with google-tunix")
    parser.add_argument("--adapters", action="store_true", help="ours without and with them")
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--work", nargs="+", default=list(WORK), choices=WORK)
    parser.add_argument("--lanes", type=int, default=0, help="rollout.lanes of ours; 0: as it is")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--turns", type=int, default=TURNS)
    parser.add_argument("--version", choices=VERSIONS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.version:
        version = VERSIONS[args.version]
        own = {"lanes": args.lanes} if args.version.startswith("ours") else {}
        in_turns.serve(version(SHAPES[args.shapes[0]], args.work[0], args.turns, **own))
        return
    for shape in args.shapes:
        print(f"{shape}: products at {gflops():.0f} Gflop/s", flush=True)
        for work in args.work:
            compare(shape, work, args)


def compare(shape: str, work: str, args: argparse.Namespace) -> None:
    from tarl_jax.parallel.process import MALLOC  # the peer's environment has no tarl_jax

    versions = ["ours", "ours, nothing shared"] if work == "group" else ["ours"]
    versions += ["tunix"] if args.peer else []
    versions += ["transformers"]
    if args.adapters:
        versions = ["ours", "ours, adapters"]
    commands = {}
    for name in versions:
        python = args.peer if name == "tunix" else sys.executable
        command = [python, __file__, "--version", name, "--shapes", shape, "--work", work,
                   "--turns", str(args.turns), "--lanes", str(args.lanes)]
        commands[name] = (command, {**os.environ, **MALLOC})
    medians = in_turns.medians(commands, args.rounds)
    prompt, new, turns, rows = sizes(SHAPES[shape], work, args.turns)
    tokens = rows * (prompt + turns * new + (turns - 1) * TURN * (work == "dialogue"))
    for name, value in medians.items():
        print(
            f"{shape} {work:8} {name:20} {value:7.2f} s  {tokens / value:7,.0f} tokens/s"
            f"  {value / medians['ours']:6.2f} x", flush=True,
        )
    least = 2 * products(SHAPES[shape]) * tokens / gflops() / 1e9
    print(f"{shape} {work:8} {'roofline':20} {least:7.2f} s  {'':16}  "
          f"{least / medians['ours']:6.2f} x", flush=True)


def sizes(shape: tuple[int, ...], work: str, turns: int) -> tuple[int, int, int, int]:
    """(prompt, new tokens of a turn, turns, rows)."""
    rows = shape[-1]
    if work == "dialogue":
        return TURN, TURN, turns, rows
    if work == "turn":
        return *ALONE, 1, rows
    return GROUP[1], GROUP[2], 1, rows


def products(shape: tuple[int, ...]) -> int:
    """Weights that each token is multiplied with, the head among them."""
    layers, width, heads, kv_heads, head_dim, d_ff, vocab, _ = shape
    attention = width * head_dim * (2 * heads + 2 * kv_heads)
    return layers * (attention + 3 * width * d_ff) + width * vocab


def gflops() -> float:
    """Speed of a large matrix product, the best of ten."""
    import numpy as np

    a = np.ones((2048, 2048), np.float32)
    best = float("inf")
    for _ in range(10):
        begun = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - begun)
    return 2 * 2048**3 / best / 1e9


def prompts(shape: tuple[int, ...], work: str, turns: int):
    """int32 [rows, prompt] and the answers [turns - 1, rows, TURN]."""
    import numpy as np

    prompt, _, _, rows = sizes(shape, work, turns)
    rng = np.random.default_rng(0)
    first = rng.integers(10, shape[-2], (rows, prompt)).astype(np.int32)
    if work == "group":
        first = np.repeat(first[:: GROUP[0]], GROUP[0], axis=0)[:rows]
    return first, rng.integers(10, shape[-2], (turns - 1, rows, TURN)).astype(np.int32)


# ---- the three ------------------------------------------------------------------------------


def ours(shape, work, turns, share=64, rank=0, lanes=0):
    import jax

    from tarl_jax.config import LoraConfig, ModelConfig, RolloutConfig
    from tarl_jax.models import decoder
    from tarl_jax.models.lora import init_adapters, join
    from tarl_jax.parallel.mesh import make_mesh
    from tarl_jax.rollout.engine import Engine
    from tarl_jax.rollout.workers import Answer

    layers, width, heads, kv_heads, head_dim, d_ff, vocab, rows = shape
    model = ModelConfig(
        d_model=width, num_layers=layers, num_heads=heads, num_kv_heads=kv_heads,
        head_dim=head_dim, d_ff=d_ff, rope_theta=1e6, lora=LoraConfig(rank=rank),
    )
    prompt, new, turns, _ = sizes(shape, work, turns)
    config = RolloutConfig(
        slots=rows, max_turn_tokens=new, max_episode_tokens=prompt + (2 * turns) * new,
        straggler_fraction=0.0, share_prefix=share, lanes=lanes,
    )
    first, answers = prompts(shape, work, turns)
    engine = Engine(model, config, -1, make_mesh(devices=jax.devices()[:1]))  # no stop token
    params = decoder.init_params(model, vocab, jax.random.key(0))
    if rank:
        params = join(params, init_adapters(model, params, jax.random.key(1)))
    engine.programs.compile(params)

    class Play:
        outside, shared = False, 0

        def __init__(self, row):
            self.seed, self.row, self.turns = row, row, 0

        def start(self):
            return first[self.row].tolist()

        def turn(self, turn):
            assert len(turn.ids) == new
            self.turns += 1
            if self.turns == turns:
                return None
            return Answer(answers[self.turns - 1, self.row].tolist())

    def play():
        engine.run(params, [Play(row) for row in range(rows)], 1.0)

    return play


def ours_alone(shape, work, turns, lanes=0):
    return ours(shape, work, turns, share=0, lanes=lanes)


def ours_with_adapters(shape, work, turns, lanes=0):
    return ours(shape, work, turns, rank=8, lanes=lanes)


def tunix(shape, work, turns):
    import numpy as np
    from flax import nnx
    from tunix.generate.sampler import CacheConfig, Sampler
    from tunix.models.qwen3 import model as qwen3

    class Numbers:
        """Texts are numbers with spaces between."""

        def encode(self, text, **_):
            return [int(word) for word in text.split()]

        def decode(self, ids, **_):
            return " ".join(map(str, ids))

        def bos_id(self):
            return 0

        def eos_id(self):
            return shape[-2] - 1

        def pad_id(self):
            return 1

    layers, width, heads, kv_heads, head_dim, d_ff, vocab, _ = shape
    prompt, new, turns, _ = sizes(shape, work, turns)
    transformer = qwen3.Qwen3(
        qwen3.ModelConfig(
            num_layers=layers, vocab_size=vocab, embed_dim=width, hidden_dim=d_ff,
            num_heads=heads, head_dim=head_dim, num_kv_heads=kv_heads, rope_theta=1_000_000,
            norm_eps=1e-6, use_tied_embedding=True,
        ),
        rngs=nnx.Rngs(0),
    )
    longest = prompt + (turns - 1) * (new + TURN)
    sampler = Sampler(
        transformer, Numbers(), CacheConfig(longest + new, layers, kv_heads, head_dim)
    )
    first, answers = prompts(shape, work, turns)

    def play():
        dialogues = [row.tolist() for row in first]
        for turn in range(turns):
            length = prompt + turn * (new + TURN)
            out = sampler(
                [" ".join(map(str, d)) for d in dialogues], max_generation_steps=new,
                max_prompt_length=length, temperature=1.0, top_p=1.0, seed=turn,
                eos_tokens=[vocab - 1], forbidden_tokens=[vocab - 1],
            )
            for row, written in enumerate(out.tokens):
                written = np.asarray(written).tolist()[:new]
                assert len(written) == new, len(written)
                dialogues[row] += written
                if turn < turns - 1:
                    dialogues[row] += answers[turn, row].tolist()

    return play


def transformers(shape, work, turns):
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    layers, width, heads, kv_heads, head_dim, d_ff, vocab, _ = shape
    _, new, turns, _ = sizes(shape, work, turns)
    torch.set_num_threads(os.cpu_count())
    model = Qwen3ForCausalLM(Qwen3Config(
        vocab_size=vocab, hidden_size=width, intermediate_size=d_ff, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=kv_heads, head_dim=head_dim,
        tie_word_embeddings=True, rope_theta=1e6, max_position_embeddings=8192,
    )).eval()
    model.generation_config.eos_token_id = None
    first, answers = prompts(shape, work, turns)

    def play():
        dialogues = torch.tensor(first, dtype=torch.long)
        for turn in range(turns):
            with torch.inference_mode():
                dialogues = model.generate(
                    dialogues, attention_mask=torch.ones_like(dialogues), max_new_tokens=new,
                    min_new_tokens=new, do_sample=True, temperature=1.0, top_k=0, pad_token_id=0,
                )
            if turn < turns - 1:
                answer = torch.tensor(answers[turn], dtype=torch.long)
                dialogues = torch.cat([dialogues, answer], dim=1)

    return play


VERSIONS = {
    "ours": ours, "ours, nothing shared": ours_alone, "ours, adapters": ours_with_adapters,
    "tunix": tunix, "transformers": transformers,
}

if __name__ == "__main__":
    main()
