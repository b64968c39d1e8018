"""Supervised fine-tuning: dialogues are learned by the programs that reinforcement learning uses.

Rows are packed, split over the mesh and summed over micro-batches as in an update of the run, so
what trains there trains here: all weights, or adapters on frozen ones.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from tarl_jax.config import InputError, RLConfig, RunConfig
from tarl_jax.models.decoder import Params
from tarl_jax.parallel.mesh import row_shards
from tarl_jax.rl.batching import Sample, fill, packed_layouts
from tarl_jax.rl.update import NonFiniteError, TrainState, Updater
from tarl_jax.rollout.environment import Environment
from tarl_jax.sandbox.clerk import FAULTLESS
from tarl_jax.types import Batch
from tarl_jax.warm_start.demonstrations import Demonstration, demonstrate
from tarl_jax.warm_start.dialogues import read_dialogues
from tarl_jax.warm_start.imitation import Progress


def likelihood_loss(
    log_probs: jax.Array, batch: Batch, weights: jax.Array, config: RLConfig
) -> tuple[jax.Array, jax.Array]:
    """The negative log-likelihood of what the assistant wrote; nothing is held back."""
    return -jnp.sum(weights * log_probs), jnp.zeros(())


def fine_tune(
    config: RunConfig, env: Environment, mesh: Mesh, params: Params, progress: Progress
) -> tuple[TrainState, str]:
    """The state after `config.sft.steps` steps from `params`, and a line about it.

    params: all of a policy; what of them trains is given up.

    Every process learns from the same dialogues, each device from its rows. Raises InputError where
    there is no dialogue within `rollout.max_episode_tokens`, NonFiniteError where a loss is none.
    """
    settings, longest = config.sft, config.rollout.max_episode_tokens
    found = _dialogues(config, env, progress)
    short = [d for d in found if len(d.tokens) <= longest]
    if not short:
        raise InputError(
            f"{settings.file or 'the clerk'}: all {len(found)} dialogues have more than"
            f" config.rollout.max_episode_tokens = {longest} tokens; raise it"
        )
    tuner = Updater(
        config.model, env.vocab_size, _as_imitation(config), 1.0, mesh, likelihood_loss
    )
    state, losses = tuner.init(params, give=True), []
    batches = _batches(config, short, row_shards(mesh))
    for step in range(1, settings.steps + 1):
        try:
            state, values = tuner.update(state, next(batches), None)
        except NonFiniteError as error:
            raise NonFiniteError(f"fine-tuning, step {step}: {error}. Lower"
                                 " config.sft.learning_rate") from error
        losses.append(values["loss"])
        progress("fine-tuning", step, settings.steps, values["loss"])
    return state, (
        f"fine-tuned on {len(short)} dialogues ({len(found) - len(short)} are longer than"
        f" rollout.max_episode_tokens, and left out): loss {losses[0]:.3f} -> {losses[-1]:.3f}"
        " nats per token"
    )


def _dialogues(config: RunConfig, env: Environment, progress: Progress) -> list[Demonstration]:
    if config.sft.file:
        return read_dialogues(config.sft.file, env)
    whole = dataclasses.replace(
        config, warm_start=dataclasses.replace(
            config.warm_start, max_tokens=2**31, max_turns=config.rollout.max_turns
        )
    )
    return demonstrate(
        whole, env, FAULTLESS, config.sft.episodes,
        lambda made, total: progress("writing dialogues", made, total, float("nan")),
    )


def _as_imitation(config: RunConfig) -> RLConfig:
    """The optimiser's settings: the run's, without what reinforcement learning alone has."""
    return dataclasses.replace(
        config.rl, learning_rate=config.sft.learning_rate, warmup_steps=config.sft.steps // 20,
        loss_mean="token", advantage="grpo", kl_coef=0.0, entropy_coef=0.0, measure_after=False,
        pack=True,
    )


def _batches(
    config: RunConfig, dialogues: Sequence[Demonstration], shards: int
) -> Iterator[list[Batch]]:
    """Endless micro-batches of a step each; every dialogue once before one comes again."""
    rng = np.random.default_rng([config.seed, 6])
    longest, tokens = config.rollout.max_episode_tokens, 0
    chosen: list[Sample] = []
    while True:
        for i in rng.permutation(len(dialogues)):
            sample = dialogues[i].sample(0.0)
            chosen.append(dataclasses.replace(sample, sampled=sample.sampled.astype(np.float32)))
            tokens += len(sample.tokens)
            if tokens >= config.sft.batch_tokens:
                lengths = [len(one.tokens) for one in chosen]
                layouts = packed_layouts(lengths, config.rl.micro_batch_tokens, longest, shards)
                yield fill(layouts, chosen, packed=True)
                chosen, tokens = [], 0
