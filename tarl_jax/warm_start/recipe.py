"""Warm start: the policy imitates the scripted clerk that errs on purpose.

A policy that has only ever seen faultless work explores nothing that reinforcement learning could
prefer; the errors give it the variety that training then prunes. How good it is after so many steps
hangs on how a machine rounds; where it has come out better than wanted, it ends by imitating a
clerk that errs more, so that runs begin alike. The result is cached on disk under a hash of
everything that determines it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from tarl_jax.config import InputError, ModelConfig, RunConfig
from tarl_jax.models import decoder
from tarl_jax.parallel import hosts
from tarl_jax.parallel.lock import Lock
from tarl_jax.rl.update import Updater
from tarl_jax.rollout.environment import Environment
from tarl_jax.runs import checkpoint
from tarl_jax.warm_start.demonstrations import (
    demonstrate,
    desk_name,
    played,
    with_more_errors,
)
from tarl_jax.warm_start.hearing import (
    Material,
    act_on_speech,
    beginner,
    begins_in_silence,
    transcribe,
)
from tarl_jax.warm_start.imitation import Kept, Progress, Score, imitate, lower
from tarl_jax.warm_start.shipped import encoder_hash, shipped_policy

FORMAT = 6  # raised when the meaning of a cached warm start changes
ENCODER_FORMAT = 2  # the same, of policies with an audio encoder only
SPEECH_FORMAT = 4  # and of those that learn to hear
ACTING_FORMAT = 1  # and of those that act on what they hear


def warm_start(
    config: RunConfig,
    env: Environment,
    updater: Updater,
    key: jax.Array,
    progress: Progress,
    score: Score | None = None,
) -> tuple[decoder.Params, Path]:
    """Parameters after imitation, from the cache where it has them, on the updater's mesh.

    Several processes imitate the same, each for itself. The stages of speech build on one another:
    transcribing begins with the warm start in writing, acting on speech with the one that
    transcribes. Each is cached, so that a warm start that was stopped goes on from the last.

    Args:
      key: of the random parameters that imitation starts from.
      progress: called with (what is made or learned, how much of it, of how much, loss in nats per
        token or NaN).
      score: share of training tasks that a policy passes, for `warm_start.target_pass`.
    Returns: parameters, and the cache folder.
    Raises: ValueError where a target is set, there is no `score`, and the cache has nothing;
      SpeechError where users cannot be made to speak.
    """
    folder = _folder(config, warm_start_digest(config, env))
    kept = Kept(folder.with_name(f"{folder.name}.part"))
    return _cached(config, updater, key, score, Material(config, env, progress, kept))


def _cached(
    config: RunConfig,
    updater: Updater,
    key: jax.Array,
    score: Score | None,
    material: Material,
) -> tuple[decoder.Params, Path]:
    """`config`: the material's, or of a warm start that it begins with."""
    digest = warm_start_digest(config, material.env)
    folder = _folder(config, digest)
    if not config.warm_start.make:
        shipped = shipped_policy(digest)
        if shipped is not None:
            params, path = shipped
            return updater.place(params), path
        hosts.require_shared(folder.parent)
        if hosts.from_first(folder.exists):
            return checkpoint.load_params(folder, updater.policy_shapes), folder
    hosts.require_shared(folder.parent)
    if config.warm_start.target_pass and score is None:
        raise InputError(f"{folder}: the warm start of this run is gone, and only a run makes one")
    lock = Lock(folder.with_name(f"{folder.name}.lock"), f"warm start {folder}")
    hosts.from_first(lambda: lock.take(lambda owner: material.progress(
        f"waiting for {owner}, which makes it", 0, 1, float("nan")
    )) and None)
    try:
        if not config.warm_start.make and hosts.from_first(folder.exists):  # by somebody else
            return checkpoint.load_params(folder, updater.policy_shapes), folder
        params = updater.place(_made(config, updater, key, score, material))
        checkpoint.save_params(folder, params)
        hosts.from_first(lambda: shutil.rmtree(material.kept.folder, ignore_errors=True))
    finally:
        lock.release()
    return params, folder


def _folder(config: RunConfig, digest: str) -> Path:
    return Path(config.warm_start.cache_dir).expanduser() / f"warm_start-{digest}"


def _made(
    config: RunConfig,
    updater: Updater,
    key: jax.Array,
    score: Score | None,
    material: Material,
) -> decoder.Params:
    """What the cache does not have."""
    env, progress, settings = material.env, material.progress, config.warm_start
    if _learns_speech(config):
        beginner(config)  # one that does not fit is refused now, not behind the part that reads
        before, learn = (
            ({"joint_steps": 0}, act_on_speech) if settings.speech_stage.joint_steps
            else ({"episodes": 0}, transcribe)
        )
        earlier = _with_speech_stage(config, **before)
        begun, _ = _cached(earlier, updater, key, None, material)
        params = learn(material, jax.tree.map(jnp.asarray, hosts.whole(begun)))
    else:
        params = decoder.init_params(config.model, env.vocab_size, key)
        params = imitate(
            params, config.model, settings, material.written, progress, material.kept
        )
    if settings.target_pass and score is not None:
        erring = with_more_errors(settings.clerk, settings.error_factor)
        demonstrations = demonstrate(config, env, erring, settings.episodes // 6)
        params = lower(params, config.model, settings, demonstrations, score)
    if hosts.several():  # whose results may differ by rounding
        trained = params
        params = hosts.from_first(lambda: jax.device_get(trained))
    return params


def _learns_speech(config: RunConfig) -> bool:
    return bool(config.model.audio and config.warm_start.speech_stage.episodes)


def _with_speech_stage(config: RunConfig, **fields: Any) -> RunConfig:
    """Of a warm start that one with speech begins with; it has a place of its own in the cache."""
    settings = config.warm_start
    speech_stage = dataclasses.replace(settings.speech_stage, **fields)
    return dataclasses.replace(
        config, warm_start=dataclasses.replace(settings, speech_stage=speech_stage, target_pass=0.0)
    )


def warm_start_digest(config: RunConfig, env: Environment) -> str:
    """Names everything that the warm start depends on."""
    settings = dataclasses.asdict(config.warm_start)
    for name in ("cache_dir", "make"):
        del settings[name]
    if not _learns_speech(config):  # the same whatever that stage would be
        del settings["speech_stage"]
    else:
        of_masks = [name for name in settings["speech_stage"] if "_mask" in name]
        for name in [] if config.warm_start.speech_stage.masks else of_masks:
            del settings["speech_stage"][name]
        if not begins_in_silence(config):
            del settings["speech_stage"]["clean_steps"]
        name = settings["speech_stage"].pop("encoder")
        if name:
            settings["speech_stage"]["encoder"] = encoder_hash(name)
    content = {
        "format": FORMAT,
        "warm_start": settings,
        "model": _shape(config.model),
        "tokenizer": env.tokenizer.digest,
        "brief_writes": config.rollout.brief_writes,
        "system": (*env.system, *filter(None, [env.chat.begin])),
        "domain": desk_name(config),
    }
    if config.model.audio:
        content["audio_encoder"] = ENCODER_FORMAT
    if _learns_speech(config):
        content["speech"] = [SPEECH_FORMAT, config.speech.sound()]
        if config.warm_start.speech_stage.joint_steps:
            content["acting"] = ACTING_FORMAT
    if config.maths.demonstrations:
        assert env.maths is not None
        content["maths"] = [
            config.maths.demonstrations, config.maths.levels, env.maths.system,
            sorted(played(env.maths)),
        ]
    if config.warm_start.target_pass:  # the score depends on these too
        rollout = config.rollout
        content["score"] = [
            rollout.max_turn_tokens, min(rollout.max_episode_tokens, config.warm_start.max_tokens)
        ]
    else:  # what would score it does not matter
        for name in ("score_tasks", "score_trials", "error_factor"):
            del settings[name]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _shape(model: ModelConfig) -> dict[str, Any]:
    # A policy without an audio encoder is the same whatever that one would be.
    fields = dataclasses.asdict(model)
    del fields["size"]  # a name
    fields["audio"]["frozen"] = False  # in what comes after
    return fields if model.audio else {k: v for k, v in fields.items() if k != "audio"}
