"""Batches of clips that are to be transcribed: as they are, or strung together, in any acoustics.

A batch is made when it is called for. So those that an earlier start has learned from are passed
over for nothing, and every batch has acoustics of its own: a clip that comes again comes in other
noise, in another room, with other stretches masked.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from flax import struct

from tarl_jax.config.audio import AudioConfig
from tarl_jax.config.speech import SpeechConfig
from tarl_jax.models.audio_encoder import HOP
from tarl_jax.models.audio_inputs import pieces_of_rows, tokens_of
from tarl_jax.speech.acoustics import apply, draw_effects, halves
from tarl_jax.speech.sound import Pieces
from tarl_jax.speech.synthesis import SAMPLE_RATE
from tarl_jax.warm_start.demonstrations import Transcript

_LATE = round(0.6 * SAMPLE_RATE)  # before the first of clips that are strung together, at most
_PAUSE = round(0.25 * SAMPLE_RATE)  # between two of them, at most

Acoustics = Callable[[np.ndarray, np.random.Generator], np.ndarray]  # of a float32 clip


@struct.dataclass
class Clips:
    """A batch of clips of equally many pieces, and what they say.

    Attributes:
      pieces: of all clips, one behind the other.
      silent: float32 [B, S]; 1 behind a clip's tokens.
      text: int32 [B, T]; absent: float32 [B, T]; 1 behind a text's end.
    """

    pieces: Pieces
    silent: np.ndarray
    text: np.ndarray
    absent: np.ndarray


Make = Callable[[], Clips]


def unchanged(clip: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The acoustics of a clip in silence."""
    return clip


def drawn_acoustics(config: SpeechConfig, babblers: Sequence[np.ndarray]) -> Acoustics:
    """Those of the config, drawn anew for every clip; words that are said stay."""
    if not config.acoustics:
        return unchanged

    def change(clip: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        seed = int(rng.integers(2**32))
        _, effects = halves(draw_effects(config, random.Random(seed)))
        return apply(clip, effects, seed, babblers)

    return change


def mixed_batches(
    transcripts: Sequence[Transcript], seconds: float, audio: AudioConfig,
    seed: Sequence[int], acoustics: Acoustics = unchanged,
) -> Iterator[Make]:
    """One of clips as they are, one of clips strung together, and so on."""
    each = [kind(transcripts, seconds, audio, seed, acoustics)
            for kind in (clip_batches, strung_batches)]
    for both in zip(*each, strict=True):
        yield from both


def clip_batches(
    transcripts: Sequence[Transcript], seconds: float, audio: AudioConfig,
    seed: Sequence[int], acoustics: Acoustics = unchanged,
) -> Iterator[Make]:
    """Endless batches of about so many seconds of sound; clips of equally many pieces together."""
    rng = np.random.default_rng([*seed, 2])
    by_count: dict[int, list[Transcript]] = {}
    for one in transcripts:
        by_count.setdefault(-(-len(one.clip) // _samples(audio)), []).append(one)
    longest = {count: max(len(t.text) for t in clips) for count, clips in by_count.items()}
    while True:
        plans = []
        for count, clips in by_count.items():
            rows = max(1, round(seconds * 50 / (audio.n_window * count)))
            order = rng.permutation(len(clips))
            plans += [
                # The last one is filled up from the beginning: all of a count have one shape.
                (count, [clips[order[i % len(clips)]] for i in range(begin, begin + rows)])
                for begin in range(0, len(clips), rows)
            ]
        for place in rng.permutation(len(plans)):
            count, chosen = plans[place]
            draw = int(rng.integers(2**32))
            yield functools.partial(
                batch_of, [(one.clip, one.text) for one in chosen], count, longest[count], audio,
                acoustics, draw,
            )


def strung_batches(
    transcripts: Sequence[Transcript], seconds: float, audio: AudioConfig,
    seed: Sequence[int], acoustics: Acoustics = unchanged,
) -> Iterator[Make]:
    """Endless batches of clips strung together at random, with pauses, beginning anywhere.

    An encoder that knows only clips which begin at 0 learns where in them something is said: values
    that it has right alone it then has wrong in the midst of a turn. Rows have two lengths; the
    longer one has room for every clip. What is strung has acoustics as a whole, pauses too.
    """
    rng = np.random.default_rng([*seed, 3])
    size = _samples(audio)
    most = -(-(max(len(one.clip) for one in transcripts) + _LATE) // size)
    choices = []
    for count in sorted({most, -(-most // 2)}):
        fitting = [one for one in transcripts if len(one.clip) + _LATE <= count * size]
        if fitting:
            room = max(count * audio.n_window // 6, max(len(one.text) for one in fitting))
            choices.append((count, room, fitting))
    while True:
        count, room, fitting = choices[int(rng.integers(len(choices)))]
        rows = max(1, round(seconds * 50 / (audio.n_window * count)))
        plans = [_plan(fitting, count * size, room, rng) for _ in range(rows)]
        draw = int(rng.integers(2**32))
        yield functools.partial(_strung, plans, count, room, audio, acoustics, draw)


def _plan(
    clips: Sequence[Transcript], samples: int, room: int, rng: np.random.Generator
) -> list[tuple[int, Transcript]]:
    """Pauses and clips, as many as come before one that does not fit any more."""
    plan: list[tuple[int, Transcript]] = []
    at = words = 0
    pause = int(rng.integers(_LATE + 1))
    while True:
        one = clips[int(rng.integers(len(clips)))]
        if at + pause + len(one.clip) > samples or words + len(one.text) > room:
            return plan
        plan.append((pause, one))
        at += pause + len(one.clip)
        words += len(one.text)
        pause = int(rng.integers(_PAUSE + 1))


def _strung(
    plans: list[list[tuple[int, Transcript]]], count: int, longest: int, audio: AudioConfig,
    acoustics: Acoustics, draw: int,
) -> Clips:
    rows = []
    for plan in plans:
        parts = [part for pause, one in plan for part in (np.zeros(pause, np.int16), one.clip)]
        rows.append((np.concatenate(parts), np.concatenate([one.text for _, one in plan])))
    return batch_of(rows, count, longest, audio, acoustics, draw)


def batch_of(
    rows: Sequence[tuple[np.ndarray, np.ndarray]], count: int, longest: int, audio: AudioConfig,
    acoustics: Acoustics = unchanged, draw: int = 0,
) -> Clips:
    """A batch of clips with room for so many pieces and texts of `longest` tokens.

    A clip that acoustics make too long for its pieces stays as it was.

    Args:
      rows: (clip, int16 [samples]; text, int32 [tokens]).
      draw: what acoustics are drawn by.
    """
    rng = np.random.default_rng(draw)
    slots = audio.n_window // 2
    clips = np.zeros((len(rows), count * _samples(audio)), np.float32)
    lengths = []
    text = np.zeros((len(rows), longest), np.int32)
    absent = np.ones((len(rows), longest), np.float32)
    silent = np.ones((len(rows), count * slots), np.float32)
    for row, (samples, words) in enumerate(rows):
        clip = samples.astype(np.float32) / 32_768
        changed = acoustics(clip, rng)
        if len(changed) <= clips.shape[1]:
            clip = changed
        clips[row, : len(clip)] = clip
        lengths.append(len(clip))
        text[row, : len(words)] = words
        absent[row, : len(words)] = 0.0
        silent[row, : tokens_of(len(clip))] = 0.0
    return Clips(pieces_of_rows(clips, lengths, audio), silent, text, absent)


def _samples(audio: AudioConfig) -> int:
    """Of a piece."""
    return 2 * audio.n_window * HOP
