"""How far rollouts in int8 are from the policy that they are of, and what they hold.

    python benchmarks/quantised.py [--episodes 32]

The embedded policy that runs start from plays training tasks, each way of `rollout.quantise` with
the same seeds. A gap is |log p_sampler - log p_trainer| of a sampled token, the latter from a full
forward pass in the trainer's precision, as `rl/log_prob_gap` has it. Prints Markdown.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools

import jax
import numpy as np

from tarl_jax.config import RunConfig
from tarl_jax.models import decoder
from tarl_jax.parallel.mesh import bytes_on_device, make_mesh
from tarl_jax.rl.update import Updater
from tarl_jax.rollout.engine import Engine
from tarl_jax.rollout.environment import Environment
from tarl_jax.training.policy import starting_policy

WAYS = ("", "int8", "int8_cache", "int8_both")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--episodes", type=int, default=32)
    parser.add_argument("--dtype", default="float32", help="of rollouts and trainer")
    args = parser.parse_args()
    config = RunConfig()
    model = dataclasses.replace(config.model, dtype=args.dtype)
    config = dataclasses.replace(config, model=model)
    env = Environment.from_config(config)
    mesh = make_mesh(devices=jax.devices()[:1])
    updater = Updater(model, env.vocab_size, config.rl, 1.0, mesh)
    params = starting_policy(config, env, updater)
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}, {args.dtype},"
          f" {args.episodes} episodes, seed {config.seed}\n")
    print("| rollout.quantise | mean gap | largest | weights, MiB | cache, MiB |")
    print("|---|---|---|---|---|")
    for way in WAYS:
        rollout = dataclasses.replace(config.rollout, quantise=way, slots=16)
        engine = Engine(model, rollout, env.tokenizer.stop_ids, mesh, ids=env.tokenizer.vocab_size)
        own = dataclasses.replace(env, config=dataclasses.replace(config, rollout=rollout))
        tasks = env.train_tasks[: args.episodes]
        episodes = [own.episode(task, "benchmark") for task in tasks]
        engine.run(params, episodes, 1.0)
        gaps = np.concatenate([gap(params, model, e.trajectory()) for e in episodes])
        held = bytes_on_device(engine.ready(params, {}).params), engine.programs.cache_bytes()[0]
        sizes = " | ".join(f"{size / 2**20:.1f}" for size in held)
        print(f"| {way or 'nothing'} | {gaps.mean():.5f} | {gaps.max():.3f} | {sizes} |",
              flush=True)


def gap(params, model, trajectory) -> np.ndarray:
    ids, sampled, log_probs = trajectory.arrays()
    tokens = np.zeros(-(-len(ids) // 256) * 256, np.int32)
    tokens[: len(ids)] = ids
    said = np.asarray(trainers(params, model, tokens))[: len(ids) - 1]
    places = np.flatnonzero(sampled)
    return np.abs(log_probs[places] - said[places - 1])


@functools.partial(jax.jit, static_argnums=1)
def trainers(params, model, tokens):
    scores = decoder.logits(params, decoder.hidden_states(params, model, tokens[None]))[0]
    chosen = jax.nn.log_softmax(scores[:-1])
    return chosen[np.arange(len(tokens) - 1), tokens[1:]]


if __name__ == "__main__":
    main()
