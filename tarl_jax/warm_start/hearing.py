"""A policy that reads learns to hear: spelling, transcribing, acting on speech.

docs/speech.md says what each is for.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp

from tarl_jax.config import InputError, RunConfig
from tarl_jax.config.warm_start import WarmStartConfig
from tarl_jax.models import decoder
from tarl_jax.models.audio_encoder import init_audio_params
from tarl_jax.rollout.environment import Environment
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
)
from tarl_jax.warm_start.imitation import (
    Kept,
    Lesson,
    Progress,
    Trainer,
    imitation,
    make_optimizer,
    teach,
)
from tarl_jax.warm_start.masking import masked
from tarl_jax.warm_start.shipped import shipped_encoder


class Spoken(NamedTuple):
    """Spoken dialogues, what matters in them said alone, and the acoustics of what is said."""

    dialogues: list[Demonstration]
    alone: list[Transcript]
    acoustics: Acoustics


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
    def spoken(self) -> Spoken:
        settings = self.config.warm_start
        # Nobody says these things again: they need no place in the cache.
        once = dataclasses.replace(self.config.speech, cache_dir="")
        with Speech.from_config(once) as speech:
            dialogues, alone = demonstrate_spoken(
                self.config, self.env, settings.clerk, settings.speech_stage.episodes, speech,
                self._made("speaking"),
            )
            babblers = speech.babblers() if needs_babble(once) else ()
            return Spoken(dialogues, alone, drawn_acoustics(once, babblers))

    @property
    def clips(self) -> list[Transcript]:
        """All that is said."""
        said = [transcript for one in self.spoken.dialogues for transcript in one.said]
        return self.spoken.alone + said

    def _made(self, what: str) -> Callable[[int, int], None]:
        return lambda made, total: self.progress(what, made, total, float("nan"))


def transcribe(material: Material, params: decoder.Params) -> decoder.Params:
    """What the words are; a policy that reads goes on reading.

    Spelling is for the table. The audio encoder that comes out of it knows clips that begin at 0,
    and learns the middle of turns more slowly than an untaught one: it begins anew. In silence at
    first: one that begins in noise finds no word for long. With `speech_stage.encoder` both begin
    at that one.
    """
    config, progress = material.config, material.progress
    settings, speech_stage = config.warm_start, config.warm_start.speech_stage
    gentle = _gentle(settings, speech_stage.value_steps)
    spaced = material.spaced
    reading = imitation(
        config.model, settings,
        [*spaced, *_some(material.written, len(spaced) or len(material.written))],
    )
    lesson = _transcription(material, _in_silence(material, material.spoken.alone))
    begin = beginner(config) or params["audio"]
    params = {**params, "audio": begin}
    trainer = Trainer(params, make_optimizer(gentle), lesson, reading)
    params = teach(trainer, "spelling", speech_stage.value_steps, progress, material.kept)

    encoder = make_optimizer(dataclasses.replace(
        gentle, steps=speech_stage.steps, learning_rate=speech_stage.learning_rate
    ))
    gradient = jax.jit(functools.partial(
        transcription.gradient_of_encoder, config.model, _placeholder(material.env)
    ))
    clean_steps = speech_stage.clean_steps if begins_in_silence(config) else 0
    silent = itertools.islice(_in_silence(material, material.clips), clean_steps)
    batches = itertools.chain(silent, _as_heard(material, material.clips))
    lesson = Lesson(functools.partial(gradient, params), batches)
    trainer = Trainer(begin, encoder, lesson)
    return {**params, "audio": teach(
        trainer, "transcribing", speech_stage.steps, progress, material.kept
    )}


def begins_in_silence(config: RunConfig) -> bool:
    """Whether the audio encoder is untaught, and hears later what it does not in `clean_steps`."""
    speech_stage = config.warm_start.speech_stage
    return bool(not speech_stage.encoder and (speech_stage.masks or config.speech.acoustics))


def beginner(config: RunConfig) -> decoder.Params | None:
    """The audio encoder that spelling and transcribing begin at; None: an untaught one.

    Raises InputError for one that the package does not keep, or whose shapes are others than the
    config's.
    """
    name = config.warm_start.speech_stage.encoder
    if not name:
        return None
    found = jax.tree.map(jnp.asarray, shipped_encoder(name))
    wanted = jax.eval_shape(lambda: init_audio_params(config.model.audio, jax.random.key(0)))
    if jax.tree.map(jnp.shape, found) != jax.tree.map(jnp.shape, wanted):
        raise InputError(f"config.warm_start.speech_stage.encoder={name!r}: has other shapes than"
                         " config.model.audio; begin at an untaught one: ''")
    return found


def act_on_speech(material: Material, params: decoder.Params) -> decoder.Params:
    """What to do about the words."""
    config, progress = material.config, material.progress
    settings, speech_stage = config.warm_start, config.warm_start.speech_stage
    then = _gentle(settings, speech_stage.joint_steps)
    then = dataclasses.replace(
        then, batch_tokens=speech_stage.batch_tokens, adam_learning_rate=then.adam_learning_rate / 2
    )
    spoken = material.spoken.dialogues
    count = len(spoken)
    acting = imitation(
        config.model, then,
        [*spoken, *_some(material.spaced, count), *_some(material.written, count)],
    )
    transcribing = _transcription(material, _as_heard(material, material.clips, 1))
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
        clips, settings.speech_stage.batch_seconds, material.config.model.audio, [settings.seed]
    )


def _as_heard(material: Material, clips: list[Transcript], *again: int) -> Iterator[Make]:
    """In the acoustics of the config, masked as it says.

    again: makes them others than those of another stage.
    """
    settings = material.config.warm_start
    seed = [settings.seed, *again]
    batches = mixed_batches(
        clips, settings.speech_stage.batch_seconds, material.config.model.audio, seed,
        material.spoken.acoustics,
    )
    return masked(batches, settings.speech_stage, seed)


def _placeholder(env: Environment) -> int:
    (placeholder,) = env.tokenizer.encode_markup(AUDIO)
    return placeholder


def _some(of: list[Demonstration], count: int) -> list[Demonstration]:
    """At most so many of them, from all shops."""
    return of[:: max(len(of) // max(count, 1), 1)][:count]
