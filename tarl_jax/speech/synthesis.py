"""What a synthesiser is, the voices it is asked for, and what any clip must be.

A clip is mono speech at 16 kHz: float32 [samples] in [-1, 1), each value a whole number of 1/32768,
so that 16-bit files keep it exactly.
"""

from __future__ import annotations

import dataclasses
import random
from typing import Protocol

import numpy as np

from tarl_jax.config import InputError, TarlError
from tarl_jax.config.speech import PITCH, SPEED, SpeechConfig, engine_of

SAMPLE_RATE = 16_000
LEVELS = 32_768  # of 16 bits, on either side of zero
OWN_PITCH = 0.5  # of every engine
MAX_CHARACTERS = 4096  # of one text, which is also the limit of OpenAI's endpoint
_AUDIBLE = 1e-3  # a peak below it (-60 dB) is silence
_CANCELLED = 0.01  # of the loudest channel's power, what is left of a sum that cancels out
_RATES = (8_000, 192_000)

KINDS = (
    "text",  # nothing to say, or too much
    "voice",  # the engine has no such voice
    "timeout",  # the engine took longer than timeout_seconds
    "crashed",  # its process ended
    "server",  # it answered with an error, or not at all
    "format",  # what came is no audio
    "rate",  # audio at a sample rate that it should not have
    "not_finite",  # samples that are not numbers
    "silent",  # no sample, or none that can be heard
    "missing",  # no recording of this text
    "not_installed",  # a package is missing
)


class SpeechError(TarlError):
    """No clip; `kind` is one of KINDS, the message says which text and what helps."""

    def __init__(self, kind: str, message: str):
        assert kind in KINDS, kind
        super().__init__(f"{kind}: {message}")
        self.kind = kind

    @property
    def fatal(self) -> bool:
        """Whether nothing can be said at all."""
        return self.kind == "not_installed"


@dataclasses.dataclass(frozen=True)
class Voice:
    """Who speaks.

    Attributes:
      name: of the engine's, e.g. "en-us" or, with eSpeak's variants, "en-us+f3". Before it may
        stand another engine than `speech.engine`, as in "piper:en_US-joe-medium".
      speed: factor; 1 is the engine's own.
      pitch: 0 lowest, 1 highest, 0.5 the engine's own, which only eSpeak can change.
    """

    name: str
    speed: float = 1.0
    pitch: float = OWN_PITCH

    def __post_init__(self) -> None:
        for field, (low, high) in (("speed", SPEED), ("pitch", PITCH)):
            value = getattr(self, field)
            if not low <= value <= high:
                raise InputError(f"voice {field} = {value!r}: must be from {low:g} to {high:g}")


class Synthesiser(Protocol):
    """Text to clips; several threads may ask at once."""

    def version(self, voice: Voice) -> str:
        """Names all that the samples depend on beside text and voice. Raises SpeechError."""
        ...

    def say(self, text: str, voice: Voice) -> np.ndarray:
        """The clip. Raises SpeechError."""
        ...

    def close(self) -> None:
        """Ends what runs beside this process."""
        ...


def draw_voice(config: SpeechConfig, rng: random.Random) -> Voice:
    """One of the voices that are not held out, as its engine can speak."""
    voices = config.drawn_voices
    name = rng.choice(voices) if voices else ""
    speed, pitch = rng.uniform(*config.speed), rng.uniform(*config.pitch)
    match engine_of(name, config.engine):
        case "espeak", _:
            return Voice(name, round(speed, 2), round(pitch, 2))
        case ("piper" | "server"), _:
            return Voice(name, round(speed, 2))
    return Voice(name)


def check_text(text: str) -> None:
    """Raises SpeechError where there is nothing to say, or more than one turn of a user is."""
    if not text.strip() or "\0" in text:
        raise SpeechError("text", f"nothing can be said of {text!r}")
    if len(text) > MAX_CHARACTERS:
        raise SpeechError(
            "text", f"{text[:40]!r}… has {len(text)} characters; at most {MAX_CHARACTERS} are said"
        )


def to_clip(samples: np.ndarray, rate: int, what: str) -> np.ndarray:
    """A clip of samples in [-1, 1], of shape [samples] or [samples, channels], at any usual rate.

    Raises SpeechError, of kind "rate", "not_finite" or "silent", which names `what`.
    """
    if not _RATES[0] <= rate <= _RATES[1]:
        raise SpeechError(
            "rate", f"{what}: {rate} samples a second, expected {_RATES[0]} to {_RATES[1]}"
        )
    if not np.isfinite(samples).all():
        raise SpeechError("not_finite", f"{what}: {np.sum(~np.isfinite(samples))} samples are not")
    if samples.ndim == 2:
        samples = _mono(samples)
    if not samples.size or np.abs(samples).max() < _AUDIBLE:
        raise SpeechError("silent", f"{what}: {samples.size} samples, none of which can be heard")
    samples = samples.astype(np.float32)
    if rate != SAMPLE_RATE:
        samples = resample(samples, rate, SAMPLE_RATE)
    return quantise(samples)


def _mono(samples: np.ndarray) -> np.ndarray:
    """The channels' mean; the loudest one where they cancel out, as in opposite phase."""
    mixed = samples.mean(axis=1)
    power = (samples.astype(np.float64) ** 2).mean(axis=0) if len(samples) else np.zeros(1)
    if (mixed.astype(np.float64) ** 2).sum() < _CANCELLED * power.max() * len(samples):
        return samples[:, power.argmax()]
    return mixed


def whole_wav(data: bytes) -> bytes:
    """A WAV whose header tells how much sound is there.

    Whoever streams one writes the header first, with a size of 0 or one that is too large; the
    sound then goes on to the end. Anything else is left as it is.
    """
    place = 12
    if not (data.startswith(b"RIFF") and data[8:12] == b"WAVE"):
        return data
    while place + 8 <= len(data):
        size = int.from_bytes(data[place + 4 : place + 8], "little")
        begin = place + 8
        if data[place : place + 4] == b"data":
            left = len(data) - begin
            if 0 < size <= left:
                return data
            sizes = [n.to_bytes(4, "little") for n in (len(data) - 8, left)]
            return b"RIFF" + sizes[0] + data[8 : place + 4] + sizes[1] + data[begin:]
        place = begin + size + size % 2
    return data


def resample(samples: np.ndarray, rate: float, to: float) -> np.ndarray:
    """The same sound at another rate."""
    try:
        import soxr
    except ImportError as error:
        raise not_installed("soxr") from error
    return soxr.resample(samples, rate, to, quality="HQ")


def quantise(samples: np.ndarray) -> np.ndarray:
    """To the nearest of 16 bits' values; what lies beyond them is made quieter as a whole."""
    levels = samples * LEVELS
    beyond = max(levels.max(initial=0.0) / (LEVELS - 1), -levels.min(initial=0.0) / LEVELS, 1.0)
    # Adding zero leaves no negative zero, which files do not keep.
    return (np.rint(levels / beyond) / LEVELS + 0.0).astype(np.float32)


def not_installed(package: str, extra: str = "speech") -> SpeechError:
    return SpeechError("not_installed", f"speech needs {package}: pip install -e '.[{extra}]'")
