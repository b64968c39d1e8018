"""A run's speech: the synthesiser of the config behind its cache, ahead of who needs the sound."""

from __future__ import annotations

import dataclasses
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from tarl_jax.config.speech import Effect, SpeechConfig, engine_of
from tarl_jax.speech import acoustics
from tarl_jax.speech.clips import CachedSynthesiser
from tarl_jax.speech.espeak import Espeak
from tarl_jax.speech.hesitations import words_of
from tarl_jax.speech.piper import Piper
from tarl_jax.speech.recordings import Recordings
from tarl_jax.speech.server import SpeechServer
from tarl_jax.speech.synthesis import SpeechError, Synthesiser, Voice

# What the voices of a babble say.
BABBLE = (
    "Did you see where I put the other box? It was here a minute ago, next to the window.",
    "We should leave before five, or the whole road will be full again, like last week.",
    "She told me that the meeting had moved to another room, but nobody knew which one.",
    "It is two for the price of one today, so I took four of them and a bag of oranges.",
    "I can hear you quite well, only the line is a little bad, so please go on.",
    "He has been learning the piano since March, and the neighbours are very patient.",
)
_KEPT = 128  # clips that were asked for last; the episodes of a group ask for the same


class _Engines:
    """Several engines at once, one of which a voice names before its own name."""

    def __init__(self, engines: Mapping[str, Synthesiser], usual: str):
        self._engines = engines
        self._usual = usual

    def say(self, text: str, voice: Voice) -> np.ndarray:
        engine, own = self._of(voice)
        return engine.say(text, own)

    def version(self, voice: Voice) -> str:
        engine, own = self._of(voice)
        return engine.version(own)

    def close(self) -> None:
        for engine in self._engines.values():
            engine.close()

    def _of(self, voice: Voice) -> tuple[Synthesiser, Voice]:
        engine, name = engine_of(voice.name, self._usual)
        if engine not in self._engines:
            raise SpeechError("voice", f"no engine {engine!r} for {voice.name!r}: name it in"
                              " speech.voices")
        return self._engines[engine], dataclasses.replace(voice, name=name)


class Speech:
    """Says texts in `workers` threads. A context manager: leaving it closes the synthesiser."""

    def __init__(self, synthesiser: Synthesiser, *, workers: int, voices: Sequence[str]):
        self._synthesiser = synthesiser
        self._voices = tuple(voices)
        self._threads = ThreadPoolExecutor(workers, "speech")
        self._babblers: tuple[np.ndarray, ...] = ()
        self._making_babblers = threading.Lock()
        self._asked: OrderedDict[tuple[Any, ...], Future[np.ndarray]] = OrderedDict()
        self._asking = threading.Lock()

    @classmethod
    def from_config(cls, config: SpeechConfig) -> Speech:
        """Raises SpeechError for a package that is missing, OSError or ValueError for recordings
        that are not there or are wrong."""
        engines: dict[str, Synthesiser] = {}
        names = [engine_of(name, config.engine) for name in config.voices or ("",)]
        try:
            for engine in dict.fromkeys([config.engine, *(engine for engine, _ in names)]):
                engines[engine] = _synthesiser(engine, config)
            for engine, name in names:  # before anything is played
                engines[engine].version(Voice(name))
        except BaseException:
            for made in engines.values():
                made.close()
            raise
        one = engines[config.engine] if len(engines) == 1 else _Engines(engines, config.engine)
        return cls(one, workers=config.workers, voices=config.drawn_voices)

    def say(
        self, text: str, voice: Voice, effects: Sequence[Effect] = (), seed: int = 0
    ) -> np.ndarray:
        """The clip after the effects, whose chance comes from `seed`. Raises SpeechError."""
        clip = self._synthesiser.say(words_of(text, effects, seed), voice)
        babble = any(effect.name == "babble" for effect in effects)
        return acoustics.apply(clip, effects, seed, self.babblers() if babble else ())

    def submit(
        self, text: str, voice: Voice, effects: Sequence[Effect] = (), seed: int = 0
    ) -> Future[np.ndarray]:
        """The same in a thread, so that it happens while the device decodes.

        Who asks for what was asked for lately, as the episodes of a group do, shares the clip,
        which cannot be written to; what failed is tried again.
        """
        key = text, voice, tuple(effects), seed
        with self._asking:
            found = self._asked.pop(key, None)
            if found is None or _failed(found):
                found = self._threads.submit(self._say_for_all, *key)
            self._asked[key] = found
            if len(self._asked) > _KEPT:
                self._asked.popitem(last=False)
        return found

    def _say_for_all(self, *what: Any) -> np.ndarray:
        clip = self.say(*what).view()
        clip.flags.writeable = False
        return clip

    def babblers(self) -> tuple[np.ndarray, ...]:
        """Clips of the voices that a babble is made of."""
        with self._making_babblers:
            if not self._babblers:
                names = [self._voices[i % len(self._voices)] for i in range(len(BABBLE))]
                self._babblers = tuple(
                    self._synthesiser.say(text, Voice(name))
                    for text, name in zip(BABBLE, names, strict=True)
                )
            return self._babblers

    def close(self) -> None:
        """Drops what has not begun, waits for what has, and closes the synthesiser."""
        self._threads.shutdown(cancel_futures=True)
        self._synthesiser.close()

    def __enter__(self) -> Speech:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _failed(asked: Future[np.ndarray]) -> bool:
    return asked.done() and (asked.cancelled() or asked.exception() is not None)


def _synthesiser(engine: str, config: SpeechConfig) -> Synthesiser:
    synthesiser: Synthesiser
    match engine:
        case "espeak":
            synthesiser = Espeak(workers=config.workers, timeout_seconds=config.timeout_seconds)
        case "piper":
            synthesiser = Piper(
                config.piper_voices, workers=config.workers,
                timeout_seconds=config.timeout_seconds,
            )
        case "server":
            synthesiser = SpeechServer(
                config.base_url, config.model, api_key_env=config.api_key_env,
                audio_format=config.audio_format, pcm_rate=config.pcm_rate,
                timeout_seconds=config.timeout_seconds, retries=config.retries,
            )
        case _:
            return Recordings(Path(config.recordings).expanduser())
    if config.cache_dir:
        return CachedSynthesiser(synthesiser, Path(config.cache_dir).expanduser())
    return synthesiser
