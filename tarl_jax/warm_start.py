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

from tarl_jax import checkpoint, hosts, listening
from tarl_jax.config import ModelConfig, RunConfig
from tarl_jax.demonstrations import (
    Demonstration,
    Transcript,
    clumsier,
    demonstrate,
    demonstrate_aloud,
    played,
)
from tarl_jax.models import decoder
from tarl_jax.models.head import sampled_log_probs
from tarl_jax.models.hearing import hidden_states
from tarl_jax.rl.batching import fill, packed_layouts
from tarl_jax.rl.update import NonFiniteError, Updater
from tarl_jax.rollout.world import World
from tarl_jax.speech.service import Speech
from tarl_jax.text.tokenizer import AUDIO
from tarl_jax.types import Batch
from tarl_jax.warm_start_config import WarmStartConfig

FORMAT = 5  # raised when the meaning of a cached warm start changes
_POOL = 256  # dialogues that rows are packed from at a time
_GENTLE = 0.05  # of the peak learning rate, while the pass rate is brought down
_LOOK = 10  # steps between two scores meanwhile

Progress = Callable[[str, int, int, float], None]
Score = Callable[[decoder.Params], float]


def warm_start(
    config: RunConfig,
    world: World,
    updater: Updater,
    key: jax.Array,
    progress: Progress,
    score: Score | None = None,
) -> tuple[decoder.Params, Path]:
    """Parameters after imitation, from the cache where it has them, on the updater's mesh.

    Several processes imitate the same, each for itself. What learns to hear begins with the warm
    start that only reads, which is cached too.

    Args:
      key: of the random parameters that imitation starts from.
      progress: called with (what is learned, step, steps, loss in nats per token).
      score: share of training tasks that a policy passes, for `warm_start.target_pass`.
    Returns: parameters, and the cache folder.
    Raises: ValueError where a target is set, there is no `score`, and the cache has nothing;
      SpeechError where users cannot be made to speak.
    """
    folder = Path(config.warm_start.cache_dir).expanduser() / f"warm_start-{_digest(config, world)}"
    hosts.require_shared(folder.parent)
    if hosts.from_first(folder.exists):
        return checkpoint.load_params(folder, updater.policy_shapes), folder
    if config.warm_start.target_pass and score is None:
        raise ValueError(f"{folder}: the warm start of this run is gone, and only a run makes one")
    settings = config.warm_start
    demonstrations = demonstrate(config, world, settings.clerk, settings.episodes)
    if _listens(config):
        reader, _ = warm_start(_deaf(config), world, updater, key, progress)
        params = jax.tree.map(jnp.asarray, hosts.whole(reader))
        params = _learn_to_hear(config, world, params, demonstrations, progress)
    else:
        params = decoder.init_params(config.model, world.vocab_size, key)
        params = imitate(params, config.model, settings, demonstrations, progress)
    if settings.target_pass and score is not None:
        clumsy = clumsier(settings.clerk, settings.clumsiness)
        demonstrations = demonstrate(config, world, clumsy, settings.episodes // 6)
        params = lower(params, config.model, settings, demonstrations, score)
    if hosts.several():  # whose results may differ by rounding
        trained = params
        params = hosts.from_first(lambda: jax.device_get(trained))
    params = updater.place(params)
    checkpoint.save_params(folder, params)
    return params, folder


def _listens(config: RunConfig) -> bool:
    return bool(config.model.audio and config.warm_start.listen.episodes)


def _deaf(config: RunConfig) -> RunConfig:
    """Of the warm start that one by ear begins with, which has a place of its own in the cache."""
    settings = config.warm_start
    listen = dataclasses.replace(settings.listen, episodes=0)
    return dataclasses.replace(
        config, warm_start=dataclasses.replace(settings, listen=listen, target_pass=0.0)
    )


def _learn_to_hear(
    config: RunConfig,
    world: World,
    params: decoder.Params,
    written: list[Demonstration],
    progress: Progress,
) -> decoder.Params:
    """First what the words are, then what to do about them; a policy that reads goes on reading."""
    settings, listen = config.warm_start, config.warm_start.listen
    # Nobody says these things again: they need no place in the cache.
    with Speech.from_config(dataclasses.replace(config.speech, cache_dir="")) as speech:
        aloud, alone = demonstrate_aloud(
            config, world, settings.clerk, listen.episodes, speech,
            lambda done, total: progress("speaking", done, total, float("nan")),
        )
    transcripts = [transcript for one in aloud for transcript in one.said]
    (placeholder,) = world.tokenizer.encode_markup(AUDIO)
    model, window = config.model, config.model.audio.n_window

    def batches(of: list[Transcript]) -> Iterator[listening.Spoken]:
        return listening.spoken_batches(of, listen.batch_seconds, window, settings.seed)

    spelling = jax.jit(functools.partial(listening.gradient, model, placeholder))
    gentle = dataclasses.replace(
        settings, steps=listen.value_steps,
        learning_rate=listen.joint_rate * settings.learning_rate,
        adam_learning_rate=listen.adam_learning_rate,
    )
    reading = _imitation(model, settings, written)
    trainer = _Trainer(params, make_optimizer(gentle), _Lesson(spelling, batches(alone)), reading)
    params = _teach(trainer, "spelling", listen.value_steps, progress)

    ears = make_optimizer(dataclasses.replace(
        settings, steps=listen.steps, learning_rate=listen.learning_rate,
        adam_learning_rate=listen.adam_learning_rate,
    ))
    everything = alone + transcripts
    gradient = jax.jit(functools.partial(listening.gradient_of_ears, model, placeholder))
    lesson = _Lesson(functools.partial(gradient, params), batches(everything))
    trainer = _Trainer(params["audio"], ears, lesson)
    params = {**params, "audio": _teach(trainer, "transcribing", listen.steps, progress)}

    then = dataclasses.replace(
        gentle, steps=listen.joint_steps, batch_tokens=listen.batch_tokens,
        adam_learning_rate=listen.adam_learning_rate / 2,
    )
    acting = _imitation(model, then, [*aloud, *written[: len(aloud)]])
    hearing = _Lesson(spelling, batches(everything))
    trainer = _Trainer(params, make_optimizer(then), acting, hearing)
    return _teach(trainer, "listening", listen.joint_steps, progress)


def _digest(config: RunConfig, world: World) -> str:
    """Names everything that the warm start depends on."""
    settings = dataclasses.asdict(config.warm_start)
    del settings["cache_dir"]
    if not _listens(config):  # the same however it would listen
        del settings["listen"]
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
    if _listens(config):
        content["speech"] = {
            name: value for name, value in dataclasses.asdict(config.speech).items()
            if name not in ("share", "per", "cache_dir", "timeout_seconds", "workers", "retries",
                            "base_url", "api_key_env", "recordings")
        }
    if config.maths.demonstrations:
        assert world.maths is not None
        content["maths"] = [
            config.maths.demonstrations, config.maths.levels, world.maths.system,
            sorted(played(world.maths)),
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


def imitate(
    params: decoder.Params,
    model: ModelConfig,
    config: WarmStartConfig,
    demonstrations: list[Demonstration],
    progress: Progress,
) -> decoder.Params:
    """Minimises the cross-entropy of the clerk's tokens (and, weighted, of all others)."""
    trainer = _Trainer(
        params, make_optimizer(config), _imitation(model, config, demonstrations)
    )
    return _teach(trainer, "imitating", config.steps, progress)


def _teach(trainer: _Trainer, what: str, steps: int, progress: Progress) -> decoder.Params:
    for step in range(1, steps + 1):
        loss = trainer.step()
        if step % 10 == 0 or step == steps:
            value = float(loss)
            if not np.isfinite(value):
                raise NonFiniteError(f"warm start, {what}: loss {value} at step {step}; lower"
                                     " the learning rates of warm_start")
            progress(what, step, steps, value)
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
    trainer = _Trainer(
        params, make_optimizer(config, _GENTLE), _imitation(model, config, demonstrations)
    )
    for step in range(config.steps // 8):
        if step % _LOOK == 0 and score(trainer.params) <= config.target_pass:
            break
        trainer.step()
    return trainer.params


@dataclasses.dataclass(frozen=True)
class _Lesson:
    """gradient: (parameters, a batch) to (gradient, loss); batches: endless."""

    gradient: Callable[[decoder.Params, Any], tuple[decoder.Params, jax.Array]]
    batches: Iterator[Any]


def _imitation(
    model: ModelConfig, config: WarmStartConfig, demonstrations: list[Demonstration]
) -> _Lesson:
    gradient = jax.jit(functools.partial(_gradient, model))
    return _Lesson(gradient, _batches(demonstrations, config))


class _Trainer:
    """Parameters and optimiser; each step takes a batch of every lesson."""

    def __init__(
        self,
        params: decoder.Params,
        optimizer: optax.GradientTransformation,
        *lessons: _Lesson,
    ):
        self.params = jax.tree.map(jnp.copy, params)  # the caller's are not given up
        self._opt_state = jax.jit(optimizer.init)(params)
        self._lessons = lessons
        self._apply = jax.jit(functools.partial(_apply, optimizer), donate_argnums=(0, 1))

    def step(self) -> jax.Array:
        """One update; the loss of the first lesson before it."""
        found = [lesson.gradient(self.params, next(lesson.batches)) for lesson in self._lessons]
        slopes = [slope for slope, _ in found]
        self.params, self._opt_state = self._apply(self.params, self._opt_state, *slopes)
        return found[0][1]


def make_optimizer(config: WarmStartConfig, share: float = 0.0) -> optax.GradientTransformation:
    """Muon on the matrices of the layers, Adam on embeddings and norms.

    For the parameters of a policy, whose ears have Adam alone, or of ears, whose convolutions and
    projection have Muon too.

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
        of_ears = {"conv1": ((0, 1), 2), "conv2": ((0, 1), 2), "project": (0, 1)}
        specs = jax.tree.map(lambda _: None, params)
        for part, axes in ((specs["layers"], shapes), (specs, of_ears)):
            for name in part.keys() & axes.keys():
                part[name] = optax.contrib.MuonDimensionNumbers(*axes[name])
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


def _batches(demonstrations: list[Demonstration], config: WarmStartConfig) -> Iterator[Batch]:
    """Endless batches whose advantages are the loss's weights, several dialogues to a row."""
    rng = np.random.default_rng([config.seed, 1])
    longest = max(len(d.tokens) for d in demonstrations)
    while True:
        order = rng.permutation(len(demonstrations))
        for start in range(0, len(order), _POOL):
            pool = [demonstrations[i] for i in order[start : start + _POOL]]
            samples = [d.sample(config.observation_weight) for d in pool]
            lengths = [len(d.tokens) for d in pool]
            layouts = packed_layouts(lengths, config.batch_tokens, longest)
            for place in rng.permutation(len(layouts)):
                yield fill([layouts[place]], samples, packed=True)[0]


def _gradient(
    model: ModelConfig, params: decoder.Params, batch: Batch
) -> tuple[decoder.Params, jax.Array]:
    """Gradient of the weighted loss, and the loss of the clerk's tokens alone."""
    weights, agent = batch.advantages, batch.sampled

    def loss_of(p: decoder.Params) -> tuple[jax.Array, jax.Array]:
        hidden = hidden_states(p, model, batch.tokens, batch.segments, batch.hearing)
        log_probs, _ = sampled_log_probs(p, hidden, batch.tokens, weights, 1.0)
        shown = -jnp.sum(agent * log_probs) / jnp.maximum(agent.sum(), 1.0)
        return -jnp.sum(weights * log_probs) / jnp.maximum(weights.sum(), 1.0), shown

    return jax.grad(loss_of, has_aux=True)(params)


def _apply(
    optimizer: optax.GradientTransformation,
    params: decoder.Params,
    opt_state: optax.OptState,
    *slopes: decoder.Params,
) -> tuple[decoder.Params, optax.OptState]:
    slope = jax.tree.map(lambda *of: sum(of[1:], of[0]), *slopes)
    updates, opt_state = optimizer.update(slope, opt_state, params)
    return optax.apply_updates(params, updates), opt_state
