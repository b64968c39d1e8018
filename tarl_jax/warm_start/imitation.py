"""How a policy learns from demonstrations: lessons, an optimiser, steps.

A lesson is a gradient and endless batches for it; a trainer's step takes a batch of each of its
lessons. Imitation, the cross-entropy of what the clerk wrote, is one; `transcription.py` has
others.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tarl_jax.config import ModelConfig, TarlError
from tarl_jax.config.warm_start import WarmStartConfig
from tarl_jax.models import decoder
from tarl_jax.models.audio_inputs import hidden_states
from tarl_jax.models.head import sampled_log_probs
from tarl_jax.parallel import hosts
from tarl_jax.rl.batching import Layout, Sample, fill, packed_layouts
from tarl_jax.rl.update import NonFiniteError
from tarl_jax.runs.checkpoint import load_params, save_params
from tarl_jax.types import Batch
from tarl_jax.warm_start.demonstrations import Demonstration

Progress = Callable[[str, int, int, float], None]  # see `warm_start`
Score = Callable[[decoder.Params], float]

_KEPT_EVERY = 60.0  # seconds, so that a kill costs no more
_POOL = 256  # dialogues that rows are packed from at a time
_GENTLE = 0.05  # of the peak learning rate, while the pass rate is brought down
_LOOK = 10  # steps between two scores meanwhile


def imitate(
    params: decoder.Params,
    model: ModelConfig,
    config: WarmStartConfig,
    demonstrations: list[Demonstration],
    progress: Progress,
    kept: Kept,
) -> decoder.Params:
    """Minimises the cross-entropy of the clerk's tokens (and, weighted, of all others)."""
    trainer = Trainer(params, make_optimizer(config), imitation(model, config, demonstrations))
    return teach(trainer, "imitating", config.steps, progress, kept)


def teach(
    trainer: Trainer, what: str, steps: int, progress: Progress, kept: Kept
) -> decoder.Params:
    """Takes so many steps, those that an earlier start has taken left out.

    Where `progress` raises, and now and then before, the state is kept. Raises NonFiniteError where
    the loss is not a number.
    """
    begun = kept.restore(trainer, what)
    saved = time.monotonic()
    for step in range(begun + 1, steps + 1):
        loss = trainer.step()
        if step % 10 == 0 or step == steps:
            value = float(loss)
            if not np.isfinite(value):
                raise NonFiniteError(f"warm start, {what}: loss {value} at step {step}; lower"
                                     " the learning rates of warm_start")
            try:
                progress(what, step, steps, value)
            except TarlError:
                kept.save(trainer, what, step)
                raise
            if step == steps or time.monotonic() - saved > _KEPT_EVERY:
                kept.save(trainer, what, step)
                saved = time.monotonic()
    return trainer.params


def lower(
    params: decoder.Params,
    model: ModelConfig,
    config: WarmStartConfig,
    demonstrations: list[Demonstration],
    score: Score,
) -> decoder.Params:
    """Imitates a clerk that errs more until `score` has come down to `config.target_pass`.

    Asked every few steps; ends after an eighth of `config.steps` in any case.
    """
    trainer = Trainer(
        params, make_optimizer(config, _GENTLE), imitation(model, config, demonstrations)
    )
    for step in range(config.steps // 8):
        if step % _LOOK == 0 and score(trainer.params) <= config.target_pass:
            break
        trainer.step()
    return trainer.params


@dataclasses.dataclass(frozen=True)
class Kept:
    """Where trainers stand, in a folder that goes when the warm start is whole.

    A warm start that was stopped or killed goes on from there, to the same parameters.
    """

    folder: Path

    def save(self, trainer: Trainer, what: str, step: int) -> None:
        """Raises CheckpointError."""
        if not hosts.several():  # which imitate alike, each for itself
            save_params(self.folder / what.replace(" ", "_"), trainer.state(step))

    def restore(self, trainer: Trainer, what: str) -> int:
        """How many steps the trainer has taken now; 0 where nothing of it is kept."""
        folder = self.folder / what.replace(" ", "_")
        if hosts.several() or not folder.exists():
            return 0
        return trainer.go_on(load_params(folder, trainer.state(0)))


@dataclasses.dataclass(frozen=True)
class Lesson:
    """What is learned from.

    gradient: (parameters, a batch) to (gradient, loss).
    batches: endless; each is made when it is called, so that passing one over costs nothing.
    """

    gradient: Callable[[decoder.Params, Any], tuple[decoder.Params, jax.Array]]
    batches: Iterator[Callable[[], Any]]


def imitation(
    model: ModelConfig, config: WarmStartConfig, demonstrations: list[Demonstration]
) -> Lesson:
    """The lesson of writing what the clerk wrote."""
    gradient = jax.jit(functools.partial(_gradient, model))
    return Lesson(gradient, _batches(demonstrations, config))


class Trainer:
    """Parameters and optimiser; each step takes a batch of every lesson."""

    def __init__(
        self,
        params: decoder.Params,
        optimizer: optax.GradientTransformation,
        *lessons: Lesson,
    ):
        self.params = jax.tree.map(jnp.copy, params)  # the caller's are not given up
        self._opt_state = jax.jit(optimizer.init)(params)
        self._lessons = lessons
        self._apply = jax.jit(functools.partial(_apply, optimizer), donate_argnums=(0, 1))

    def state(self, step: int) -> Any:
        """All that the steps so far have changed, and their number."""
        return {"params": self.params, "optimizer": self._opt_state, "step": jnp.int32(step)}

    def go_on(self, state: Any) -> int:
        """Takes up a `state`, its lessons where they were then; returns the number of steps."""
        self.params, self._opt_state = state["params"], state["optimizer"]
        for _ in range(int(state["step"])):
            for lesson in self._lessons:
                next(lesson.batches)
        return int(state["step"])

    def step(self) -> jax.Array:
        """One update; the loss of the first lesson before it."""
        found = [lesson.gradient(self.params, next(lesson.batches)()) for lesson in self._lessons]
        slopes = [slope for slope, _ in found]
        self.params, self._opt_state = self._apply(self.params, self._opt_state, *slopes)
        return found[0][1]


def make_optimizer(config: WarmStartConfig, share: float = 0.0) -> optax.GradientTransformation:
    """Muon on the matrices of the layers, Adam on embeddings and norms.

    For the parameters of a policy, whose audio encoder has Adam alone, or for those of an audio
    encoder, whose convolutions and projection have Muon too.

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
        of_encoder = {"conv1": ((0, 1), 2), "conv2": ((0, 1), 2), "project": (0, 1)}
        specs = jax.tree.map(lambda _: None, params)
        for part, axes in ((specs["layers"], shapes), (specs, of_encoder)):
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


def _batches(
    demonstrations: list[Demonstration], config: WarmStartConfig
) -> Iterator[Callable[[], Batch]]:
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
                yield functools.partial(_filled, layouts[place], samples)


def _filled(layout: Layout, samples: list[Sample]) -> Batch:
    return fill([layout], samples, packed=True)[0]


def _gradient(
    model: ModelConfig, params: decoder.Params, batch: Batch
) -> tuple[decoder.Params, jax.Array]:
    """Gradient of the weighted loss, and the loss of the clerk's tokens alone."""
    weights, agent = batch.advantages, batch.sampled

    def loss_of(p: decoder.Params) -> tuple[jax.Array, jax.Array]:
        hidden = hidden_states(p, model, batch.tokens, batch.segments, batch.audio_inputs)
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
