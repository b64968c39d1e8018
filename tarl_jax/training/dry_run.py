"""All that can be said and checked of a run before it starts: nothing is written, nobody asked."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np

from tarl_jax.config import RunConfig
from tarl_jax.judge.service import Judge
from tarl_jax.models.hf_config import completed
from tarl_jax.models.hugging_face import check_checkpoint
from tarl_jax.parallel import hosts
from tarl_jax.parallel.mesh import Mesh, make_mesh, rollout_mesh
from tarl_jax.rl.update import Updater
from tarl_jax.rollout.environment import Environment
from tarl_jax.rollout.episode import max_turns
from tarl_jax.rollout.lengths import require_room
from tarl_jax.runs.directory import check_run_dir, checkpoints
from tarl_jax.sandbox.idle import idle
from tarl_jax.training.estimate import estimate
from tarl_jax.training.parts import Parts, checked, record
from tarl_jax.training.policy import make_updater
from tarl_jax.training.run import require_enough


def dry_run(config: RunConfig, parts: Parts | None = None) -> Iterator[str]:
    """Lines about a run, each as soon as it is known.

    Raises what `train` would raise before its first compilation, but for a run directory that
    another process has.
    """
    config = completed(config)
    parts = checked(parts, config)
    hosts.check(config)
    mesh, rollouts = make_mesh(config.mesh), rollout_mesh(config.mesh)
    yield from _directory(config, parts)
    yield _devices(mesh, rollouts)
    env = Environment.from_config(config, parts.domain, parts.tasks, parts.user)
    try:
        require_enough(env)
        evaluation = env.evaluation()
        updater = make_updater(config, env, parts.loss)
        env.engine()
        yield from _model(config, env, updater)
        yield from _plan(config, env, evaluation)
        yield str(require_room(env))
        if env.config.sandbox.data:
            yield str(idle(env.domain, [*env.train_tasks, *env.held_out_tasks]))
        env.check_users()
        with (
            tempfile.TemporaryDirectory() as folder,
            Judge(config.judge, Path(folder), own=parts.judge) as judge,
        ):
            judge.check()
        done = max(_saved(config), default=0)
        for asked in estimate(config, env, evaluation, parts, done):
            yield from asked.lines()
    finally:
        env.close()
    yield "all checks pass; this was a dry run: nothing was written, and nobody was asked"


def _directory(config: RunConfig, parts: Parts) -> Iterator[str]:
    path = Path(config.workdir).expanduser()
    changed = check_run_dir(config, record(parts))
    steps = _saved(config)
    where = f"{path}" if config.workdir else f"runs/{config.name}-<date and time>"
    yield f"run: goes on in {where} after step {steps[-1]}" if steps else f"run: new, in {where}"
    for key, (before, now) in changed.items():
        yield f"  config.{key}: {before!r} -> {now!r}"


def _saved(config: RunConfig) -> list[int]:
    return checkpoints(Path(config.workdir).expanduser()) if config.workdir else []


def _devices(mesh: Mesh, rollouts: Mesh) -> str:
    def shape(of: Mesh) -> str:
        return " x ".join(f"{name} {size}" for name, size in of.shape.items())

    kind = jax.devices()[0].device_kind
    return (f"devices: {mesh.size} ({kind}), {jax.process_count()} process(es); updates on"
            f" {shape(mesh)}, rollouts on {shape(rollouts)}")


def _model(config: RunConfig, env: Environment, updater: Updater) -> Iterator[str]:
    model = config.model
    if model.pretrained:
        check_checkpoint(model.pretrained, model, env.vocab_size)
    count = sum(int(np.prod(x.shape)) for x in jax.tree.leaves(updater.policy_shapes))
    trained = sum(int(np.prod(x.shape)) for x in jax.tree.leaves(updater.shapes().params))
    source = model.pretrained or "no checkpoint"
    hears = f", audio encoder of {model.audio.encoder_layers} layers" if model.audio else ""
    yield (
        f"model: {source}: {model.num_layers} layers of width {model.d_model}, {model.num_heads}"
        f" heads ({model.num_kv_heads} of keys), vocabulary {env.vocab_size:,},"
        f" {'tied' if model.tie_embeddings else 'untied'}, rotary base {model.rope_theta:,.0f}"
        f"{hears}; {count:,} parameters, {trained:,} train"
    )
    bytes_of, optimizer = updater.bytes_per_device()
    yield (f"memory: {bytes_of / 2**30:.2f} GiB of parameters and {optimizer / 2**30:.2f} GiB of"
           " the optimiser on a device; what programs take beside it says tarl_jax.plan")
    ends = [env.tokenizer.decode([token]) for token in env.tokenizer.stop_ids]
    yield f"turns end with {', '.join(ends)}; " + "; ".join(
        f"{name} draw at temperature {of.temperature}, top_k {of.top_k}, top_p {of.top_p}, min_p"
        f" {of.min_p}" for name, of in (("rollouts", config.rollout), ("evaluations", config.eval))
    )


def _plan(config: RunConfig, env: Environment, evaluation: Environment) -> Iterator[str]:
    rollout, rl = config.rollout, config.rl
    yield (f"tasks: {env.domain.name}, {len(env.train_tasks)} to train on;"
           f" {evaluation.domain.name}, {len(evaluation.held_out_tasks)} held out")
    if config.sft.steps:
        yield f"fine-tuning: {config.sft.steps} steps of {config.sft.batch_tokens:,} tokens"
    most = max_turns(env.train_tasks[0], rollout)
    yield (f"steps: {rl.steps} of {rollout.tasks_per_step} tasks x {rollout.group_size} episodes of"
           f" up to {most or 'any number of'} turns and {rollout.max_episode_tokens:,} tokens,"
           f" {rollout.slots} at once; {rl.minibatches * rl.epochs} updates a step")
