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

from tarl_jax.config import ModelConfig, RunConfig
from tarl_jax.config.warm_start import WarmStartConfig
from tarl_jax.models import decoder
from tarl_jax.parallel import hosts
from tarl_jax.rl.update import Updater
from tarl_jax.rollout.environment import World
from tarl_jax.runs import checkpoint
from tarl_jax.speech.service import Speech
from tarl_jax.text.tokenizer import AUDIO
from tarl_jax.warm_start import transcription
from tarl_jax.warm_start.demonstrations import (
    Demonstration,
    Transcript,
    clumsier,
    demonstrate,
    demonstrate_aloud,
    demonstrate_spaced,
    played,
)
from tarl_jax.warm_start.imitation import (
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

FORMAT = 5  # raised when the meaning of a cached warm start changes
SPEECH_FORMAT = 2  # the same of those with ears alone


@dataclasses.dataclass(frozen=True, eq=False)
class Material:
    """What a warm start learns from, each part made when it is first asked for, and once.

    progress: as in `warm_start`.
    """

    config: RunConfig
    world: World
    progress: Progress

    @functools.cached_property
    def written(self) -> list[Demonstration]:
        settings = self.config.warm_start
        return demonstrate(
            self.config, self.world, settings.clerk, settings.episodes,
            self._made("writing dialogues"),
        )

    @functools.cached_property
    def spaced(self) -> list[Demonstration]:
        settings = self.config.warm_start
        return demonstrate_spaced(
            self.config, self.world, settings.clerk, settings.listen.spaced
        ) if settings.listen.spaced else []

    @functools.cached_property
    def aloud(self) -> tuple[list[Demonstration], list[Transcript]]:
        """Spoken dialogues, and what matters in them, said alone."""
        settings = self.config.warm_start
        # Nobody says these things again: they need no place in the cache.
        once = dataclasses.replace(self.config.speech, cache_dir="")
        with Speech.from_config(once) as speech:
            return demonstrate_aloud(
                self.config, self.world, settings.clerk, settings.listen.episodes, speech,
                self._made("speaking"),
            )

    @property
    def clips(self) -> list[Transcript]:
        """All that is said."""
        aloud, alone = self.aloud
        return alone + [transcript for one in aloud for transcript in one.said]

    def _made(self, what: str) -> Callable[[int, int], None]:
        return lambda made, total: self.progress(what, made, total, float("nan"))


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
    start that only reads, and what acts on what it hears with the one that only transcribes; these
    are cached too, so that one that was stopped goes on from the last of them.

    Args:
      key: of the random parameters that imitation starts from.
      progress: called with (what is made or learned, how much of it, of how much, loss in nats per
        token or NaN).
      score: share of training tasks that a policy passes, for `warm_start.target_pass`.
    Returns: parameters, and the cache folder.
    Raises: ValueError where a target is set, there is no `score`, and the cache has nothing;
      SpeechError where users cannot be made to speak.
    """
    return _cached(config, updater, key, score, Material(config, world, progress))


def _cached(
    config: RunConfig,
    updater: Updater,
    key: jax.Array,
    score: Score | None,
    material: Material,
) -> tuple[decoder.Params, Path]:
    """`config`: the material's, or of a warm start that it begins with."""
    world, progress = material.world, material.progress
    folder = Path(config.warm_start.cache_dir).expanduser() / f"warm_start-{_digest(config, world)}"
    hosts.require_shared(folder.parent)
    if hosts.from_first(folder.exists):
        return checkpoint.load_params(folder, updater.policy_shapes), folder
    if config.warm_start.target_pass and score is None:
        raise ValueError(f"{folder}: the warm start of this run is gone, and only a run makes one")
    settings = config.warm_start
    if _listens(config):
        before, learn = (
            ({"joint_steps": 0}, _listen) if settings.listen.joint_steps
            else ({"episodes": 0}, _transcribe)
        )
        earlier = _with_listening(config, **before)
        begun, _ = _cached(earlier, updater, key, None, material)
        params = learn(material, jax.tree.map(jnp.asarray, hosts.whole(begun)))
    else:
        params = decoder.init_params(config.model, world.vocab_size, key)
        params = imitate(params, config.model, settings, material.written, progress)
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


def _with_listening(config: RunConfig, **fields: int) -> RunConfig:
    """Of a warm start that one by ear begins with, which has a place of its own in the cache."""
    settings = config.warm_start
    listen = dataclasses.replace(settings.listen, **fields)
    return dataclasses.replace(
        config, warm_start=dataclasses.replace(settings, listen=listen, target_pass=0.0)
    )


def _transcribe(material: Material, params: decoder.Params) -> decoder.Params:
    """What the words are; a policy that reads goes on reading.

    Spelling is for the table. Ears that come out of it know clips that begin at 0, and learn the
    middle of turns more slowly than ears that know nothing: these begin anew.
    """
    config, progress = material.config, material.progress
    settings, listen = config.warm_start, config.warm_start.listen
    _, alone = material.aloud
    gentle = _gentle(settings, listen.value_steps)
    spaced = material.spaced
    reading = imitation(
        config.model, settings,
        [*spaced, *_some(material.written, len(spaced) or len(material.written))],
    )
    lesson = _hearing(material, alone)
    untaught = params["audio"]
    trainer = Trainer(params, make_optimizer(gentle), lesson, reading)
    params = teach(trainer, "spelling", listen.value_steps, progress)

    ears = make_optimizer(dataclasses.replace(
        gentle, steps=listen.steps, learning_rate=listen.learning_rate
    ))
    gradient = jax.jit(
        functools.partial(transcription.gradient_of_ears, config.model, _placeholder(material.world))
    )
    lesson = Lesson(functools.partial(gradient, params), _batches(config, material.clips))
    trainer = Trainer(untaught, ears, lesson)
    return {**params, "audio": teach(trainer, "transcribing", listen.steps, progress)}


def _listen(material: Material, params: decoder.Params) -> decoder.Params:
    """What to do about the words."""
    config, progress = material.config, material.progress
    settings, listen = config.warm_start, config.warm_start.listen
    then = _gentle(settings, listen.joint_steps)
    then = dataclasses.replace(
        then, batch_tokens=listen.batch_tokens, adam_learning_rate=then.adam_learning_rate / 2
    )
    aloud, _ = material.aloud
    count = len(aloud)
    acting = imitation(
        config.model, then,
        [*aloud, *_some(material.spaced, count), *_some(material.written, count)],
    )
    hearing = _hearing(material, material.clips)
    trainer = Trainer(params, make_optimizer(then), acting, hearing)
    return teach(trainer, "listening", listen.joint_steps, progress)


def _gentle(settings: WarmStartConfig, steps: int) -> WarmStartConfig:
    """Of an optimiser for a decoder that has learned to read."""
    return dataclasses.replace(
        settings, steps=steps,
        learning_rate=settings.listen.joint_rate * settings.learning_rate,
        adam_learning_rate=settings.listen.adam_learning_rate,
    )


def _hearing(material: Material, clips: list[Transcript]) -> Lesson:
    """Transcription, by all parameters."""
    config = material.config
    gradient = functools.partial(transcription.gradient, config.model, _placeholder(material.world))
    return Lesson(jax.jit(gradient), _batches(config, clips))


def _batches(config: RunConfig, clips: list[Transcript]) -> Iterator[transcription.Spoken]:
    """One of clips as they are, one of clips strung together, and so on."""
    settings, window = config.warm_start, config.model.audio.n_window
    kinds = transcription.spoken_batches, transcription.strung_batches
    each = [kind(clips, settings.listen.batch_seconds, window, settings.seed) for kind in kinds]
    for both in zip(*each, strict=True):
        yield from both


def _placeholder(world: World) -> int:
    (placeholder,) = world.tokenizer.encode_markup(AUDIO)
    return placeholder


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
    if config.model.audio:
        content["ears"] = SPEECH_FORMAT
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
