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

from tarl_jax import checkpoint, hosts, listening
from tarl_jax.config import ModelConfig, RunConfig
from tarl_jax.demonstrations import (
    Demonstration,
    Transcript,
    clumsier,
    demonstrate,
    demonstrate_aloud,
    demonstrate_spaced,
    played,
)
from tarl_jax.imitation import (
    Lesson,
    Progress,
    Score,
    Trainer,
    imitate,
    imitation,
    lower,
    make_optimizer,
    teach,
)
from tarl_jax.models import decoder
from tarl_jax.rl.update import Updater
from tarl_jax.rollout.world import World
from tarl_jax.speech.service import Speech
from tarl_jax.text.tokenizer import AUDIO

FORMAT = 5  # raised when the meaning of a cached warm start changes
Written = Callable[[], list[Demonstration]]


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
      progress: called with (what is made or learned, how much of it, of how much, loss in nats per
        token or NaN).
      score: share of training tasks that a policy passes, for `warm_start.target_pass`.
    Returns: parameters, and the cache folder.
    Raises: ValueError where a target is set, there is no `score`, and the cache has nothing;
      SpeechError where users cannot be made to speak.
    """

    def write() -> list[Demonstration]:
        settings = config.warm_start
        return demonstrate(
            config, world, settings.clerk, settings.episodes,
            lambda made, total: progress("writing dialogues", made, total, float("nan")),
        )

    # Made where the cache lacks something, and once for reading and hearing.
    return _cached(config, world, updater, key, progress, score, functools.cache(write))


def _cached(
    config: RunConfig,
    world: World,
    updater: Updater,
    key: jax.Array,
    progress: Progress,
    score: Score | None,
    written: Written,
) -> tuple[decoder.Params, Path]:
    folder = Path(config.warm_start.cache_dir).expanduser() / f"warm_start-{_digest(config, world)}"
    hosts.require_shared(folder.parent)
    if hosts.from_first(folder.exists):
        return checkpoint.load_params(folder, updater.policy_shapes), folder
    if config.warm_start.target_pass and score is None:
        raise ValueError(f"{folder}: the warm start of this run is gone, and only a run makes one")
    settings = config.warm_start
    if _listens(config):
        reader, _ = _cached(_deaf(config), world, updater, key, progress, None, written)
        params = jax.tree.map(jnp.asarray, hosts.whole(reader))
        params = _learn_to_hear(config, world, params, written(), progress)
    else:
        params = decoder.init_params(config.model, world.vocab_size, key)
        params = imitate(params, config.model, settings, written(), progress)
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
        """One of clips as they are, one of clips strung together, and so on."""
        kinds = listening.spoken_batches, listening.strung_batches
        each = [kind(of, listen.batch_seconds, window, settings.seed) for kind in kinds]
        for both in zip(*each, strict=True):
            yield from both

    spelling = jax.jit(functools.partial(listening.gradient, model, placeholder))
    gentle = dataclasses.replace(
        settings, steps=listen.value_steps,
        learning_rate=listen.joint_rate * settings.learning_rate,
        adam_learning_rate=listen.adam_learning_rate,
    )
    spaced = (
        demonstrate_spaced(config, world, settings.clerk, listen.spaced) if listen.spaced else []
    )
    reading = imitation(
        model, settings, [*spaced, *_some(written, len(spaced) or len(written))]
    )
    trainer = Trainer(params, make_optimizer(gentle), Lesson(spelling, batches(alone)), reading)
    params = teach(trainer, "spelling", listen.value_steps, progress)

    ears = make_optimizer(dataclasses.replace(
        settings, steps=listen.steps, learning_rate=listen.learning_rate,
        adam_learning_rate=listen.adam_learning_rate,
    ))
    everything = alone + transcripts
    gradient = jax.jit(functools.partial(listening.gradient_of_ears, model, placeholder))
    lesson = Lesson(functools.partial(gradient, params), batches(everything))
    trainer = Trainer(params["audio"], ears, lesson)
    params = {**params, "audio": teach(trainer, "transcribing", listen.steps, progress)}

    then = dataclasses.replace(
        gentle, steps=listen.joint_steps, batch_tokens=listen.batch_tokens,
        adam_learning_rate=listen.adam_learning_rate / 2,
    )
    count = len(aloud)
    acting = imitation(model, then, [*aloud, *_some(spaced, count), *_some(written, count)])
    hearing = Lesson(spelling, batches(everything))
    trainer = Trainer(params, make_optimizer(then), acting, hearing)
    return teach(trainer, "listening", listen.joint_steps, progress)


def _some(of: list[Demonstration], count: int) -> list[Demonstration]:
    """At most so many of them, from all shops."""
    return of[:: max(len(of) // max(count, 1), 1)][:count]


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
