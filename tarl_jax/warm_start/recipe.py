"""Warm start: the policy imitates the scripted clerk that errs on purpose.

A policy that has only ever seen faultless work explores nothing that reinforcement learning could
prefer; the errors give it the variety that training then prunes. How good it is after so many steps
hangs on how a machine rounds; where it has come out better than wanted, it ends by imitating a
clerk that errs more, so that runs begin alike. The result is cached on disk under a hash of
everything that determines it.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tarl_jax.config import InputError, ModelConfig, RunConfig, TarlError
from tarl_jax.config.warm_start import WarmStartConfig
from tarl_jax.models import decoder
from tarl_jax.parallel import hosts
from tarl_jax.parallel.lock import Lock
from tarl_jax.rl.update import Updater
from tarl_jax.rollout.environment import Environment
from tarl_jax.runs import checkpoint
from tarl_jax.speech.acoustics import needs_babble
from tarl_jax.speech.service import Speech
from tarl_jax.text.tokenizer import AUDIO
from tarl_jax.warm_start import transcription
from tarl_jax.warm_start.clips import Acoustics, Make, drawn_acoustics, mixed_batches
from tarl_jax.warm_start.demonstrations import (
    Demonstration,
    Transcript,
    demonstrate,
    demonstrate_spaced,
    demonstrate_spoken,
    desk_name,
    played,
    with_more_errors,
)
from tarl_jax.warm_start.imitation import (
    Kept,
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
from tarl_jax.warm_start.masking import masked

DEFAULT = Path(__file__).with_name("default.npz")  # the embedded default's policy
FORMAT = 6  # raised when the meaning of a cached warm start changes
ENCODER_FORMAT = 2  # the same, of policies with an audio encoder only
SPEECH_FORMAT = 3  # and of those that learn to hear


@dataclasses.dataclass(frozen=True, eq=False)
class Material:
    """What a warm start learns from, each part made when it is first asked for, and once.

    progress: as in `warm_start`.
    kept: where its trainers stand, if an earlier start was stopped.
    """

    config: RunConfig
    env: Environment
    progress: Progress
    kept: Kept

    @functools.cached_property
    def written(self) -> list[Demonstration]:
        settings = self.config.warm_start
        return demonstrate(
            self.config, self.env, settings.clerk, settings.episodes,
            self._made("writing dialogues"),
        )

    @functools.cached_property
    def spaced(self) -> list[Demonstration]:
        settings = self.config.warm_start
        return demonstrate_spaced(
            self.config, self.env, settings.clerk, settings.speech_stage.spaced
        ) if settings.speech_stage.spaced else []

    @functools.cached_property
    def spoken(self) -> tuple[list[Demonstration], list[Transcript], Acoustics]:
        """Spoken dialogues, what matters in them, said alone, and the acoustics of what is said."""
        settings = self.config.warm_start
        # Nobody says these things again: they need no place in the cache.
        once = dataclasses.replace(self.config.speech, cache_dir="")
        with Speech.from_config(once) as speech:
            found, alone = demonstrate_spoken(
                self.config, self.env, settings.clerk, settings.speech_stage.episodes, speech,
                self._made("speaking"),
            )
            babblers = speech.babblers() if needs_babble(once) else ()
            return found, alone, drawn_acoustics(once, babblers)

    @property
    def clips(self) -> list[Transcript]:
        """All that is said."""
        spoken, alone, _ = self.spoken
        return alone + [transcript for one in spoken for transcript in one.said]

    def _made(self, what: str) -> Callable[[int, int], None]:
        return lambda made, total: self.progress(what, made, total, float("nan"))


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
        kept = load_default(digest)
        if kept is not None:
            return updater.place(kept), DEFAULT
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
        before, learn = (
            ({"joint_steps": 0}, _act_on_speech) if settings.speech_stage.joint_steps
            else ({"episodes": 0}, _transcribe)
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


def load_default(digest: str) -> decoder.Params | None:
    """The policy that the package keeps, where it is the one of this digest; else None.

    Raises TarlError where the file is not the one that its record describes.
    """
    record = DEFAULT.with_suffix(".json")
    if not (DEFAULT.is_file() and record.is_file()):
        return None
    said = json.loads(record.read_text("utf-8"))
    if said["digest"] != digest:
        return None
    if hashlib.sha256(DEFAULT.read_bytes()).hexdigest() != said["sha256"]:
        raise TarlError(f"{DEFAULT}: is not the file that {record.name} describes; install the"
                        " package again, or make the warm start: --config.warm_start.make=True")
    params: decoder.Params = {}
    with np.load(DEFAULT) as arrays:
        for name in arrays.files:
            *way, last = name.split("/")
            place = params
            for step in way:
                place = place.setdefault(step, {})
            place[last] = arrays[name].astype(np.float32)
    return params


def save_default(params: decoder.Params, record: dict[str, Any]) -> None:
    """Puts a policy into the package, each value rounded to half precision, with its record.

    record: how it was made; digest and hash are added by the caller and here.
    """
    leaves: Any = jax.tree_util.tree_leaves_with_path(params)
    arrays: dict[str, Any] = {
        "/".join(key.key for key in path): np.asarray(x).astype(np.float16) for path, x in leaves
    }
    np.savez_compressed(DEFAULT, **arrays)
    said = {**record, "sha256": hashlib.sha256(DEFAULT.read_bytes()).hexdigest()}
    DEFAULT.with_suffix(".json").write_text(json.dumps(said, indent=2) + "\n", "utf-8")


def _learns_speech(config: RunConfig) -> bool:
    return bool(config.model.audio and config.warm_start.speech_stage.episodes)


def _with_speech_stage(config: RunConfig, **fields: int) -> RunConfig:
    """Of a warm start that one with speech begins with; it has a place of its own in the cache."""
    settings = config.warm_start
    speech_stage = dataclasses.replace(settings.speech_stage, **fields)
    return dataclasses.replace(
        config, warm_start=dataclasses.replace(settings, speech_stage=speech_stage, target_pass=0.0)
    )


def _transcribe(material: Material, params: decoder.Params) -> decoder.Params:
    """What the words are; a policy that reads goes on reading.

    Spelling is for the table. The audio encoder that comes out of it knows clips that begin at 0,
    and learns the middle of turns more slowly than an untaught one: it begins anew. In silence at
    first: one that begins in noise finds no word for long.
    """
    config, progress = material.config, material.progress
    settings, speech_stage = config.warm_start, config.warm_start.speech_stage
    _, alone, _ = material.spoken
    gentle = _gentle(settings, speech_stage.value_steps)
    spaced = material.spaced
    reading = imitation(
        config.model, settings,
        [*spaced, *_some(material.written, len(spaced) or len(material.written))],
    )
    lesson = _transcription(material, _in_silence(material, alone))
    untaught = params["audio"]
    trainer = Trainer(params, make_optimizer(gentle), lesson, reading)
    params = teach(trainer, "spelling", speech_stage.value_steps, progress, material.kept)

    encoder = make_optimizer(dataclasses.replace(
        gentle, steps=speech_stage.steps, learning_rate=speech_stage.learning_rate
    ))
    gradient = jax.jit(functools.partial(
        transcription.gradient_of_encoder, config.model, _placeholder(material.env)
    ))
    begin = itertools.islice(_in_silence(material, material.clips), speech_stage.clean_steps)
    batches = itertools.chain(begin, _as_heard(material, material.clips))
    lesson = Lesson(functools.partial(gradient, params), batches)
    trainer = Trainer(untaught, encoder, lesson)
    return {**params, "audio": teach(
        trainer, "transcribing", speech_stage.steps, progress, material.kept
    )}


def _act_on_speech(material: Material, params: decoder.Params) -> decoder.Params:
    """What to do about the words."""
    config, progress = material.config, material.progress
    settings, speech_stage = config.warm_start, config.warm_start.speech_stage
    then = _gentle(settings, speech_stage.joint_steps)
    then = dataclasses.replace(
        then, batch_tokens=speech_stage.batch_tokens, adam_learning_rate=then.adam_learning_rate / 2
    )
    spoken, _, _ = material.spoken
    count = len(spoken)
    acting = imitation(
        config.model, then,
        [*spoken, *_some(material.spaced, count), *_some(material.written, count)],
    )
    transcribing = _transcription(material, _as_heard(material, material.clips))
    trainer = Trainer(params, make_optimizer(then), acting, transcribing)
    return teach(
        trainer, "acting on speech", speech_stage.joint_steps, progress, material.kept
    )


def _gentle(settings: WarmStartConfig, steps: int) -> WarmStartConfig:
    """Of an optimiser for a decoder that has learned to read."""
    return dataclasses.replace(
        settings, steps=steps,
        learning_rate=settings.speech_stage.joint_rate * settings.learning_rate,
        adam_learning_rate=settings.speech_stage.adam_learning_rate,
    )


def _transcription(material: Material, batches: Iterator[Make]) -> Lesson:
    """Transcription, by all parameters."""
    gradient = functools.partial(
        transcription.gradient, material.config.model, _placeholder(material.env)
    )
    return Lesson(jax.jit(gradient), batches)


def _in_silence(material: Material, clips: list[Transcript]) -> Iterator[Make]:
    """Batches of the clips as they were said."""
    settings = material.config.warm_start
    return mixed_batches(
        clips, settings.speech_stage.batch_seconds, material.config.model.audio, settings.seed
    )


def _as_heard(material: Material, clips: list[Transcript]) -> Iterator[Make]:
    """In the acoustics of the config, masked as it says."""
    settings = material.config.warm_start
    _, _, acoustics = material.spoken
    batches = mixed_batches(
        clips, settings.speech_stage.batch_seconds, material.config.model.audio, settings.seed,
        acoustics,
    )
    return masked(batches, settings.speech_stage, settings.seed)


def _placeholder(env: Environment) -> int:
    (placeholder,) = env.tokenizer.encode_markup(AUDIO)
    return placeholder


def _some(of: list[Demonstration], count: int) -> list[Demonstration]:
    """At most so many of them, from all shops."""
    return of[:: max(len(of) // max(count, 1), 1)][:count]


def warm_start_digest(config: RunConfig, env: Environment) -> str:
    """Names everything that the warm start depends on."""
    settings = dataclasses.asdict(config.warm_start)
    for name in ("cache_dir", "make"):
        del settings[name]
    if not _learns_speech(config):  # the same whatever that stage would be
        del settings["speech_stage"]
    else:
        of_masks = [name for name in settings["speech_stage"] if "_mask" in name]
        masks = config.warm_start.speech_stage.masks
        for name in [] if masks else of_masks:
            del settings["speech_stage"][name]
        if not (masks or config.speech.acoustics):
            del settings["speech_stage"]["clean_steps"]
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
