"""All that can be said and checked before a command starts: nothing is written, nobody asked."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Iterator
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
from tarl_jax.runs import wandb_copy
from tarl_jax.runs.directory import check_run_dir, checkpoints, chosen, require_run
from tarl_jax.sandbox.idle import idle
from tarl_jax.training.estimate import estimate
from tarl_jax.training.parts import Parts, checked, record
from tarl_jax.training.policy import make_updater
from tarl_jax.training.run import require_enough

More = Callable[[Environment], Iterator[str]]


def show(
    config: RunConfig, parts: Parts | None = None, reads: int | None = None,
    evaluates: bool = False, more: More = lambda env: iter(()),
) -> None:
    """Prints the lines of `dry_run`."""
    out = hosts.output()
    for line in dry_run(config, parts, reads, evaluates, more):
        print(line, file=out, flush=True)


def dry_run(
    config: RunConfig, parts: Parts | None = None, reads: int | None = None,
    evaluates: bool = False, more: More = lambda env: iter(()),
) -> Iterator[str]:
    """Lines about what a command would do, each as soon as it is known.

    Args:
      reads: the checkpoint that a command reads, -1 the newest; None for one that trains.
      evaluates: whether such a command asks users and judge, as an evaluation does.
      more: lines of the command's own, at the end.

    Raises what the command would raise before its first compilation, but for a run directory that
    another process has.
    """
    config = completed(config)
    parts = checked(parts, config)
    hosts.check(config)
    mesh, rollouts = make_mesh(config.mesh), rollout_mesh(config.mesh)
    yield from _directory(config, parts) if reads is None else _read(config, parts, reads)
    yield _devices(mesh, rollouts)
    env = Environment.from_config(config, parts.domain, parts.tasks, parts.user)
    try:
        if reads is None:
            wandb_copy.check(config.log.wandb)
            require_enough(env)
        evaluation = env.evaluation()
        updater = make_updater(config, env, parts.loss)
        env.engine()
        yield from _model(config, env, updater)
        yield _tasks(env, evaluation)
        if reads is None:
            yield from _plan(config, env)
        elif evaluates:
            count = min(config.eval.final_tasks, len(evaluation.held_out_tasks))
            ways = "".join(f", then spoken ({chain})" for chain in config.eval.spoken)
            yield f"evaluation: {count} tasks x {config.eval.trials} trials{ways}"
        yield str(require_room(env))
        if env.config.sandbox.data:
            yield str(idle(env.domain, [*env.train_tasks, *env.held_out_tasks]))
        if reads is None or evaluates:
            yield from _asked(config, parts, env, evaluation, reads)
        yield from more(env)
    finally:
        env.close()
    yield "all checks pass; this was a dry run: nothing was written, and nobody was asked"


def _asked(
    config: RunConfig, parts: Parts, env: Environment, evaluation: Environment, reads: int | None
) -> Iterator[str]:
    """Checks who is asked, without asking, and says what it costs."""
    env.check_users()
    with (
        tempfile.TemporaryDirectory() as folder,
        Judge(config.judge, Path(folder), own=parts.judge) as judge,
    ):
        judge.check()
    done = max(_saved(config), default=0)
    if reads is not None:  # one evaluation, and no step
        done, replace = 0, dataclasses.replace
        config = replace(config, rl=replace(config.rl, steps=0),
                         eval=replace(config.eval, before=True))
    for asked in estimate(config, env, evaluation, parts, done):
        yield from asked.lines()


def _read(config: RunConfig, parts: Parts, step: int) -> Iterator[str]:
    """Of a command that reads a checkpoint, or without a run what a config starts from."""
    if not config.workdir:
        yield "policy: what the config starts from, no run's"
        return
    path = Path(config.workdir).expanduser()
    changed = require_run(config, path, record(parts))
    yield f"run: reads the checkpoint of step {chosen(path, _saved(config), step)} of {path}"
    for key, (before, now) in changed.items():
        yield f"  config.{key}: {before!r} -> {now!r}"


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
    shared = set(mesh.devices.flat) & set(rollouts.devices.flat)
    return (f"devices: {jax.device_count()} ({kind}), {jax.process_count()} process(es); updates on"
            f" {shape(mesh)}, rollouts on {shape(rollouts)}{'' if shared else ', their own'}")


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


def _tasks(env: Environment, evaluation: Environment) -> str:
    return (f"tasks: {env.domain.name}, {len(env.train_tasks)} to train on;"
            f" {evaluation.domain.name}, {len(evaluation.held_out_tasks)} held out")


def _plan(config: RunConfig, env: Environment) -> Iterator[str]:
    rollout, rl = config.rollout, config.rl
    if config.sft.steps:
        yield f"fine-tuning: {config.sft.steps} steps of {config.sft.batch_tokens:,} tokens"
    most = max_turns(env.train_tasks[0], rollout)
    yield (f"steps: {rl.steps} of {rollout.tasks_per_step} tasks x {rollout.group_size} episodes of"
           f" up to {most or 'any number of'} turns and {rollout.max_episode_tokens:,} tokens,"
           f" {rollout.slots} at once; {rl.minibatches * rl.epochs} updates a step")
