"""One GRPO update, ours against google-tunix's, at the same shapes, in turns in one run.

    python3 -m venv TUNIX && TUNIX/bin/pip install google-tunix==0.1.7 "jax==0.10.2"
    python benchmarks/train_step.py --peer TUNIX/bin/python

Both train a Qwen3-shaped decoder in float32 with AdamW on rows of 256 prompt tokens (forced) and
128 completion tokens (sampled): forward, backward, clipping of the gradient and optimiser step. The
peer runs its own loss (`grpo_loss_fn`, no KL) in its trainer's step under `nnx.jit` with the graph
cached, as its trainer does. Ours runs as `tarl_jax.main` runs it: in micro-batches of
`rl.micro_batch_tokens`, and with the allocator's settings of `tarl_jax.parallel.process`; the peer
once as it is and once with these settings too. Each version runs in its own process, which waits
while another one measures; the ratios are those of the medians.
"""

from __future__ import annotations

import argparse
import os
import sys

import in_turns

PROMPT, COMPLETION = 256, 128
# name: layers, width, query heads, key heads, head width, feed-forward, vocabulary, rows
SHAPES = {
    "4.2M": (4, 256, 4, 2, 64, 768, 4096, 32),
    "78.7M": (8, 768, 12, 4, 64, 2048, 36_992, 8),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", help="Python of an environment with google-tunix")
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--version", choices=("ours", "tunix"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.version:
        serve(args.version, SHAPES[args.shapes[0]])
        return
    if not args.peer:
        parser.error("--peer is required: the Python of an environment with google-tunix")
    for shape in args.shapes:
        compare(shape, args.peer, args.rounds)


def compare(shape: str, peer: str, rounds: int) -> None:
    from tarl_jax.parallel.process import MALLOC  # the peer's environment has no tarl_jax

    commands = {}
    for name, python, settings in (
        ("ours", sys.executable, MALLOC), ("tunix", peer, {}), ("tunix, tuned", peer, MALLOC),
    ):
        command = [python, __file__, "--version", name.split(",")[0], "--shapes", shape]
        commands[name] = (command, {**os.environ, **settings})
    tokens = SHAPES[shape][-1] * (PROMPT + COMPLETION)
    medians = in_turns.medians(commands, rounds)
    for name, value in medians.items():
        print(
            f"{shape} {name:13} {value:6.2f} s  {tokens / value:6,.0f} tokens/s"
            f"  {value / medians['ours']:.2f} x", flush=True,
        )


def serve(version: str, shape: tuple[int, ...]) -> None:
    import numpy as np

    *_, vocab, rows = shape
    rng = np.random.default_rng(0)
    tokens = rng.integers(10, vocab, (rows, PROMPT + COMPLETION)).astype(np.int32)
    advantages = rng.normal(size=rows).astype(np.float32)
    in_turns.serve((ours if version == "ours" else tunix)(shape, tokens, advantages), warm_up=2)


def ours(shape, tokens, advantages):
    import jax
    import numpy as np

    from tarl_jax.config import ModelConfig, RLConfig
    from tarl_jax.parallel.mesh import make_mesh
    from tarl_jax.rl.update import Updater
    from tarl_jax.types import Batch

    layers, width, heads, kv_heads, head_dim, d_ff, vocab, _ = shape
    model = ModelConfig(
        d_model=width, num_layers=layers, num_heads=heads, num_kv_heads=kv_heads,
        head_dim=head_dim, d_ff=d_ff, rope_theta=1e6,
    )
    updater = Updater(model, vocab, RLConfig(learning_rate=1e-6), 1.0, make_mesh())
    state = [updater.init(updater.random(jax.random.key(0)))]
    sampled = np.zeros(tokens.shape, np.float32)
    sampled[:, PROMPT:] = 1
    whole = Batch(
        tokens=tokens, sampled=sampled, log_probs=-8.0 * sampled,
        advantages=advantages[:, None] * sampled,
    )
    rows = RLConfig().micro_batch_tokens // tokens.shape[1]
    rows = next(n for n in range(rows, 0, -1) if len(tokens) % n == 0)
    batches = [
        jax.tree.map(lambda x, at=at: x[at : at + rows], whole)
        for at in range(0, len(tokens), rows)
    ]

    def step():
        state[0], values = updater.update(state[0], batches, None)
        assert np.isfinite(values["loss"])
        jax.block_until_ready(state[0].params)

    return step


def tunix(shape, tokens, advantages):
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax
    from flax import nnx
    from tunix.models.qwen3 import model as qwen3
    from tunix.rl import algo_core, common
    from tunix.rl.grpo.grpo_learner import GRPOConfig

    layers, width, heads, kv_heads, head_dim, d_ff, vocab, rows = shape
    model = qwen3.Qwen3(
        qwen3.ModelConfig(
            num_layers=layers, vocab_size=vocab, embed_dim=width, hidden_dim=d_ff,
            num_heads=heads, head_dim=head_dim, num_kv_heads=kv_heads, rope_theta=1_000_000,
            norm_eps=1e-6, use_tied_embedding=True,
        ),
        rngs=nnx.Rngs(0),
    )
    optimizer = nnx.Optimizer(
        model, optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-6, b2=0.99)),
        wrt=nnx.Param,
    )
    config = GRPOConfig(num_generations=8, beta=0.0, epsilon=0.2)
    config.temperature = 1.0  # set by its learner from the rollouts' config
    example = common.TrainExample(
        prompt_ids=jnp.asarray(tokens[:, :PROMPT]),
        prompt_mask=jnp.ones((rows, PROMPT), jnp.int32),
        completion_ids=jnp.asarray(tokens[:, PROMPT:]),
        completion_mask=jnp.ones((rows, COMPLETION), jnp.int32),
        advantages=jnp.asarray(advantages),
        ref_per_token_logps=None,
        old_per_token_logps=jnp.full((rows, COMPLETION), -8.0),
    )

    def train(model, optimizer, example):
        def loss(model):
            return algo_core.grpo_loss_fn(model, example, config, pad_id=0, eos_id=1)

        (value, aux), gradient = nnx.value_and_grad(loss, has_aux=True)(model)
        norm = optax.global_norm(gradient)
        optimizer.update(model, gradient)
        return value, aux, norm

    run = nnx.cached_partial(nnx.jit(train, donate_argnames=("optimizer",)), model, optimizer)

    def step():
        value, _, _ = run(example)
        assert np.isfinite(float(value))
        jax.block_until_ready(nnx.state(model))

    return step


if __name__ == "__main__":
    main()
