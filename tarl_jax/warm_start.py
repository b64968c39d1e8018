"""Warm start: the policy imitates the scripted clerk that errs on purpose.

A policy that has only ever seen faultless work explores nothing that reinforcement learning could
prefer; the errors give it the variety that training then prunes. How good it is after so many steps
hangs on how a machine rounds; where it has come out better than wanted, it ends by imitating a
clumsier clerk, so that runs begin alike. The result is cached on disk under a hash of everything
that determines it.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tarl_jax import checkpoint
from tarl_jax.config import ClerkConfig, ModelConfig, RunConfig, WarmStartConfig
from tarl_jax.maths.arithmetic import make_problems
from tarl_jax.models import decoder
from tarl_jax.models.head import sampled_log_probs
from tarl_jax.rl.batching import pad_rows, plan_batches
from tarl_jax.rl.update import NonFiniteError
from tarl_jax.rollout.maths import Maths
from tarl_jax.rollout.world import World
from tarl_jax.sandbox import shop
from tarl_jax.sandbox.clerk import play
from tarl_jax.sandbox.dialogue import Dialogue
from tarl_jax.sandbox.domain import Domain
from tarl_jax.sandbox.retail import retail_domain
from tarl_jax.sandbox.tasks import make_tasks
from tarl_jax.sandbox.user import ScriptedUser
from tarl_jax.types import Task

FORMAT = 3  # raised when the meaning of a cached warm start changes
_POOL = 256  # dialogues that are sorted by length together
_GENTLE = 0.05  # of the peak learning rate, while the pass rate is brought down
_LOOK = 10  # steps between two scores meanwhile

Progress = Callable[[int, int, float], None]
Score = Callable[[decoder.Params], float]


@dataclasses.dataclass(frozen=True)
class Demonstration:
    """ids of one dialogue, and which of them the clerk wrote; both of shape [S]."""

    tokens: np.ndarray
    agent: np.ndarray


def warm_start(
    config: RunConfig,
    world: World,
    key: jax.Array,
    progress: Progress,
    score: Score | None = None,
) -> tuple[decoder.Params, Path]:
    """Parameters after imitation, from the cache where it has them.

    Args:
      key: of the random parameters that imitation starts from.
      progress: called with (step, steps, loss in nats per agent token).
      score: share of training tasks that a policy passes, for `warm_start.target_pass`.
    Returns: parameters, and the cache folder.
    Raises: ValueError where a target is set, there is no `score`, and the cache has nothing.
    """
    params = decoder.init_params(config.model, world.vocab_size, key)
    folder = Path(config.warm_start.cache_dir).expanduser() / f"warm_start-{_digest(config, world)}"
    if folder.exists():
        return checkpoint.load_params(folder, params), folder
    if config.warm_start.target_pass and score is None:
        raise ValueError(f"{folder}: the warm start of this run is gone, and only a run makes one")
    settings = config.warm_start
    demonstrations = demonstrate(config, world, settings.clerk, settings.episodes)
    params = imitate(params, config.model, settings, demonstrations, progress)
    if settings.target_pass and score is not None:
        clumsy = clumsier(settings.clerk, settings.clumsiness)
        demonstrations = demonstrate(config, world, clumsy, settings.episodes // 6)
        params = lower(params, config.model, settings, demonstrations, score)
    checkpoint.save_params(folder, params)
    return params, folder


def _digest(config: RunConfig, world: World) -> str:
    """Names everything that the warm start depends on."""
    settings = dataclasses.asdict(config.warm_start)
    del settings["cache_dir"]
    content = {
        "format": FORMAT,
        "warm_start": settings,
        "model": _shape(config.model),
        "shop": dataclasses.asdict(config.shop),
        "tasks": dataclasses.asdict(config.tasks) | {"file": ""},
        "tokenizer": world.tokenizer.digest,
        "brief_writes": config.rollout.brief_writes,
        "system": world.system,
        "max_tokens": config.rollout.max_episode_tokens,
    }
    if config.maths.demonstrations:
        assert world.maths is not None
        content["maths"] = [
            config.maths.demonstrations, config.maths.levels, world.maths.system,
            sorted(_played(world.maths)),
        ]
    if config.warm_start.target_pass:  # the score depends on these too
        evaluation, rollout = config.eval, config.rollout
        content["score"] = [
            evaluation.tasks, evaluation.trials, evaluation.temperature,
            rollout.max_turns, rollout.max_turn_tokens,
        ]
        if world.users:
            user = config.user
            content["user"] = [user.strategy, user.llm.model, user.llm.temperature]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _shape(model: ModelConfig) -> dict[str, Any]:
    # A policy that cannot hear is the same whatever its ears would be.
    fields = dataclasses.asdict(model)
    return fields if model.audio else {k: v for k, v in fields.items() if k != "audio"}


def demonstrate(
    config: RunConfig, world: World, clerk: ClerkConfig, episodes: int
) -> list[Demonstration]:
    """The clerk's dialogues, and worked maths problems; those beyond the context are left out.

    They play in other branches of the shop, so that nothing about the users and orders of the run,
    trained on or held out, can be known by heart.
    """
    found = []
    branches = min(config.warm_start.branches, episodes)
    share = -(-episodes // branches)
    for branch in range(1, branches + 1):
        domain = retail_domain(shop.make_shop(config.shop, branch))
        wanted = dataclasses.replace(config.tasks, num_train=share, seed=branch)
        for index, task in enumerate(make_tasks(domain, config.shop, wanted, "train")):
            seed = (config.warm_start.seed * 1_009 + branch) * 1_000_003 + index
            found.append(_demonstration(config, world, domain, clerk, task, seed))
    if world.maths is not None:
        found += _worked_problems(config, world.maths, len(found))
    longest = config.rollout.max_episode_tokens
    return [d for d in found if len(d.tokens) <= longest]


def clumsier(clerk: ClerkConfig, times: float) -> ClerkConfig:
    """The clerk, erring so many times as often."""
    rates = dataclasses.asdict(clerk)
    return ClerkConfig(**{name: min(times * rate, 1.0) for name, rate in rates.items()})


def _demonstration(
    config: RunConfig, world: World, domain: Domain, clerk: ClerkConfig, task: Task, seed: int
) -> Demonstration:
    dialogue = Dialogue(
        task, domain, ScriptedUser(task, seed), max_turns=config.rollout.max_turns,
        brief_writes=config.rollout.brief_writes,
    )
    parts = [(world.system[1], False), (world.chat.user(dialogue.opening), False)]
    for action, observation in play(dialogue, clerk, seed):
        parts.append((world.chat.agent(action), True))
        if not observation.stop_reason:
            render = world.chat.tool if observation.role == "tool" else world.chat.user
            parts.append((render(observation.text), False))
    tokens = np.array([t for ids, _ in parts for t in ids], np.int32)
    return Demonstration(tokens, np.array([agent for ids, agent in parts for _ in ids], bool))


def _worked_problems(config: RunConfig, maths: Maths, dialogues: int) -> list[Demonstration]:
    """Maths problems of the run's levels with their solutions; none that the run plays."""
    share = config.maths.demonstrations
    problems = make_problems(
        round(dialogues * share / (1 - share)), config.maths.levels,
        f"demonstrations-{config.warm_start.seed}", _played(maths),
    )
    found = []
    for problem in problems:
        prompt = maths.system[1] + maths.chat.user(problem.text)
        solution = maths.chat.agent(problem.solution)
        agent = np.arange(len(prompt) + len(solution)) >= len(prompt)
        found.append(Demonstration(np.array(prompt + solution, np.int32), agent))
    return found


def _played(maths: Maths) -> set[str]:
    return {task.instruction for task in maths.train_tasks + maths.held_out_tasks}


def imitate(
    params: decoder.Params,
    model: ModelConfig,
    config: WarmStartConfig,
    demonstrations: list[Demonstration],
    progress: Progress,
) -> decoder.Params:
    """Minimises the cross-entropy of the clerk's tokens (and, weighted, of all others)."""
    trainer = _Trainer(params, model, config, make_optimizer(config), demonstrations)
    for step in range(1, config.steps + 1):
        loss = trainer.step()
        if step % 10 == 0 or step == config.steps:
            value = float(loss)
            if not np.isfinite(value):
                raise NonFiniteError(f"warm start: loss {value} at step {step}; lower"
                                     " warm_start.learning_rate")
            progress(step, config.steps, value)
    return trainer.params


def lower(
    params: decoder.Params,
    model: ModelConfig,
    config: WarmStartConfig,
    demonstrations: list[Demonstration],
    score: Score,
) -> decoder.Params:
    """Imitates a clumsier clerk until `score` has come down to `config.target_pass`.

    Asked every few steps; ends after an eighth of `config.steps` in any case.
    """
    trainer = _Trainer(params, model, config, make_optimizer(config, _GENTLE), demonstrations)
    for step in range(config.steps // 8):
        if step % _LOOK == 0 and score(trainer.params) <= config.target_pass:
            break
        trainer.step()
    return trainer.params


class _Trainer:
    """Parameters and optimiser over endless batches of demonstrations."""

    def __init__(
        self,
        params: decoder.Params,
        model: ModelConfig,
        config: WarmStartConfig,
        optimizer: optax.GradientTransformation,
        demonstrations: list[Demonstration],
    ):
        self.params = jax.tree.map(jnp.copy, params)  # the caller's are not given up
        self._opt_state = jax.jit(optimizer.init)(params)
        self._gradient = jax.jit(functools.partial(_gradient, model))
        self._apply = jax.jit(functools.partial(_apply, optimizer), donate_argnums=(0, 1))
        self._batches = _batches(demonstrations, config)

    def step(self) -> jax.Array:
        """One update; the loss before it, in nats per token of the clerk."""
        slope, loss = self._gradient(self.params, *next(self._batches))
        self.params, self._opt_state = self._apply(self.params, self._opt_state, slope)
        return loss


def make_optimizer(config: WarmStartConfig, share: float = 0.0) -> optax.GradientTransformation:
    """Muon on the matrices of the layers, Adam on embeddings and norms.

    share: constant learning rates at this share of their peak; 0: linear decay to nearly zero.
    """

    def schedule(peak: float) -> optax.Schedule:
        if share:
            return optax.constant_schedule(share * peak)
        warmup = max(1, min(20, config.steps // 10))
        return optax.warmup_constant_schedule(0.0, peak, warmup) if config.steps < 40 else (
            optax.join_schedules(
                [optax.linear_schedule(0.0, peak, warmup),
                 optax.linear_schedule(peak, 0.02 * peak, config.steps - warmup)],
                [warmup],
            )
        )

    def dimensions(params: decoder.Params) -> decoder.Params:
        """Which axes of a stacked weight are its input and its output (axis 0: the layer)."""
        shapes = {
            "wq": (1, (2, 3)), "wk": (1, (2, 3)), "wv": (1, (2, 3)), "wo": ((1, 2), 3),
            "w_gate": (1, 2), "w_up": (1, 2), "w_down": (1, 2),
        }
        specs = jax.tree.map(lambda _: None, params)
        for name, (inputs, outputs) in shapes.items():
            specs["layers"][name] = optax.contrib.MuonDimensionNumbers(inputs, outputs)
        return specs

    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.contrib.muon(
            schedule(config.learning_rate),
            adam_b2=0.98,
            adam_learning_rate=schedule(config.adam_learning_rate),
            muon_weight_dimension_numbers=dimensions,
        ),
    )


def _batches(
    demonstrations: list[Demonstration], config: WarmStartConfig
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Endless (tokens, loss weights, clerk's tokens), all [B, S]; similar lengths together."""
    rng = np.random.default_rng([config.seed, 1])
    while True:
        order = rng.permutation(len(demonstrations))
        for start in range(0, len(order), _POOL):
            pool = [demonstrations[i] for i in order[start : start + _POOL]]
            plans = plan_batches([len(d.tokens) for d in pool], config.batch_tokens)
            for position in rng.permutation(len(plans)):
                length, rows, chosen = plans[position]
                tokens = pad_rows([pool[i].tokens for i in chosen], (rows, length), np.int32)
                weights = pad_rows(
                    [np.where(pool[i].agent, 1.0, config.observation_weight) for i in chosen],
                    (rows, length),
                )
                agent = pad_rows([pool[i].agent for i in chosen], (rows, length))
                yield tokens, weights, agent


def _gradient(
    model: ModelConfig,
    params: decoder.Params,
    tokens: jax.Array,
    weights: jax.Array,
    agent: jax.Array,
) -> tuple[decoder.Params, jax.Array]:
    """Gradient of the weighted loss, and the loss of the clerk's tokens alone."""

    def loss_of(p: decoder.Params) -> tuple[jax.Array, jax.Array]:
        hidden = decoder.hidden_states(p, model, tokens)
        log_probs, _ = sampled_log_probs(p, hidden, tokens, weights, 1.0)
        shown = -jnp.sum(agent * log_probs) / jnp.maximum(agent.sum(), 1.0)
        return -jnp.sum(weights * log_probs) / jnp.maximum(weights.sum(), 1.0), shown

    return jax.grad(loss_of, has_aux=True)(params)


def _apply(
    optimizer: optax.GradientTransformation,
    params: decoder.Params,
    opt_state: optax.OptState,
    slope: decoder.Params,
) -> tuple[decoder.Params, optax.OptState]:
    updates, opt_state = optimizer.update(slope, opt_state, params)
    return optax.apply_updates(params, updates), opt_state
