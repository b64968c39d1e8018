"""What happens to speech on its way: noise, rooms, telephones, lost packets.

Pure functions of a clip (float32 [samples] at 16 kHz) and, where chance has a part, a NumPy
generator. None of them clips: what would pass full scale is made quieter as a whole, which leaves
ratios as they are. `apply` runs a chain of them and gives 16-bit values again.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Sequence

import numpy as np
from scipy import fft

from tarl_jax.config.speech import Effect, SpeechConfig, parse_chain
from tarl_jax.speech.synthesis import SAMPLE_RATE, quantise, resample

BAND = (300.0, 3400.0)  # Hz, of a telephone
_TAPS = 641  # of them: 40 ms
_PACKET = 320  # samples: 20 ms
_KAISER = 6.0  # 60 dB below the band


def apply(
    clip: np.ndarray, effects: Sequence[Effect], seed: int, babblers: Sequence[np.ndarray] = ()
) -> np.ndarray:
    """The clip after all effects, in order; a function of its arguments.

    babblers: clips of other voices, which "babble" needs; ValueError without.
    """
    rng = np.random.default_rng(seed)
    for effect in effects:
        match effect.name:
            case "white":
                clip = add_noise(clip, rng.standard_normal(len(clip)), effect.value)
            case "pink":
                clip = add_noise(clip, pink(len(clip), rng), effect.value)
            case "babble":
                clip = add_noise(clip, babble(len(clip), babblers, rng), effect.value)
            case "reverb":
                clip = reverberate(clip, effect.value, rng)
            case "speed":
                clip = resample(clip, SAMPLE_RATE * effect.value, SAMPLE_RATE)
            case "telephone":
                clip = telephone(clip)
            case "loss":
                clip = lose_packets(clip, effect.value / 100, rng)
            case "level":
                clip = _within_scale(clip * 10 ** (effect.value / 20))
            case "hesitant":  # of the words, before they were said
                pass
            case name:
                raise ValueError(f"no effect {name!r}")
    return quantise(clip) if effects else clip


def draw_effects(config: SpeechConfig, rng: random.Random) -> tuple[Effect, ...]:
    """One of `config.acoustics`, its ranges drawn to three digits; none for the clean share."""
    if not config.acoustics or rng.random() < config.clean:
        return ()
    effects = parse_chain(rng.choice(config.acoustics))
    return tuple(
        e if e.upper is None else Effect(e.name, float(f"{rng.uniform(e.value, e.upper):.3g}"))
        for e in effects
    )


def halves(effects: Sequence[Effect]) -> tuple[tuple[Effect, ...], tuple[Effect, ...]]:
    """What happens to the words before they are said, and what to their sound."""
    words = tuple(e for e in effects if e.name == "hesitant")
    return words, tuple(e for e in effects if e.name != "hesitant")


def needs_babble(config: SpeechConfig) -> bool:
    """Whether any of `config.acoustics` does."""
    return any(e.name == "babble" for chain in config.acoustics for e in parse_chain(chain))


def add_noise(clip: np.ndarray, noise: np.ndarray, snr_db: float) -> np.ndarray:
    """Clip and noise, their mean powers over the clip `snr_db` apart; silence stays silent."""
    power = np.mean(np.square(noise, dtype=np.float64))
    wanted = np.mean(np.square(clip, dtype=np.float64)) / 10 ** (snr_db / 10)
    return _within_scale(clip + np.sqrt(wanted / power) * noise)


def pink(samples: int, rng: np.random.Generator) -> np.ndarray:
    """Noise whose power falls with frequency, 3 dB an octave, from 20 Hz; float64 [samples]."""
    frequencies = np.fft.rfftfreq(samples, 1 / SAMPLE_RATE)
    weights = 1 / np.sqrt(np.maximum(frequencies, 20.0))
    weights[0] = 0.0
    return np.fft.irfft(np.fft.rfft(rng.standard_normal(samples)) * weights, samples)


def babble(
    samples: int, babblers: Sequence[np.ndarray], rng: np.random.Generator
) -> np.ndarray:
    """Voices at once, equally loud, each repeated from a random place; float64 [samples]."""
    if not babblers:
        raise ValueError("babble needs clips of other voices")
    total = np.zeros(samples)
    for voice in babblers:
        looped = np.resize(np.roll(voice, rng.integers(len(voice))), samples)
        total += looped / np.sqrt(np.mean(np.square(voice, dtype=np.float64)))
    return total


def reverberate(clip: np.ndarray, rt60: float, rng: np.random.Generator) -> np.ndarray:
    """The clip in a room, which rings on: float32 [samples + rt60 x 16,000].

    The room's answer to a click is the click and noise under an exponential that falls by 60 dB in
    `rt60` seconds (J. A. Moorer, 1979); both have the same energy. The mean power over the clip's
    own length stays near what it was.
    """
    time = np.arange(1, round(rt60 * SAMPLE_RATE) + 1) / SAMPLE_RATE
    tail = rng.standard_normal(len(time)) * 10 ** (-3 * time / rt60)
    tail /= np.sqrt(np.sum(np.square(tail)))
    return _within_scale(convolve(clip, np.concatenate(([1.0], tail)) / np.sqrt(2)))


def telephone(clip: np.ndarray) -> np.ndarray:
    """The clip through a telephone: 300 to 3,400 Hz, 8 kHz, 8 bits of mu-law (G.711), and back."""
    centred = slice(_TAPS // 2, _TAPS // 2 + len(clip))
    narrow = _within_scale(convolve(clip, _band_pass())[centred][::2])
    received = _mu_law()[np.rint(narrow * 32_767).astype(np.int16).view(np.uint16)]
    spread = np.zeros(len(clip))
    spread[::2] = received / 32_768 * 2  # zeros between halve what the filter passes
    return _within_scale(convolve(spread, _band_pass())[centred])


def lose_packets(clip: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """The clip in packets of 20 ms, each of which is lost with a chance of `share`.

    In a lost one's place the receiver plays what it played before, half as loud (6 dB), so that a
    longer gap fades away.
    """
    packets = np.pad(clip, (0, -len(clip) % _PACKET)).reshape(-1, _PACKET)
    played = np.zeros(_PACKET, packets.dtype)
    for packet, lost in zip(packets, rng.random(len(packets)) < share, strict=True):
        if lost:
            packet[:] = played / 2
        played = packet
    return packets.reshape(-1)[: len(clip)]


def mu_law_encode(samples: np.ndarray) -> np.ndarray:
    """G.711's 8 bits for 16-bit samples: sign, exponent, mantissa, all inverted; uint8."""
    wide = samples.astype(np.int32) >> 2  # the standard's 14 bits
    negative = wide < 0
    magnitude = np.minimum(np.abs(wide), 8158) + 33
    exponent = np.floor(np.log2(magnitude)).astype(np.int32) - 5
    mantissa = (magnitude >> (exponent + 1)) & 15
    return (~(negative * 128 | exponent << 4 | mantissa) & 255).astype(np.uint8)


def mu_law_decode(codes: np.ndarray) -> np.ndarray:
    """16-bit samples, int16, of G.711's 8 bits."""
    code = ~codes.astype(np.int32) & 255
    exponent, mantissa = code >> 4 & 7, code & 15
    magnitude = ((2 * mantissa + 33 << exponent) - 33) << 2
    return np.where(code & 128, -magnitude, magnitude).astype(np.int16)


def convolve(clip: np.ndarray, response: np.ndarray) -> np.ndarray:
    """Full convolution: float64 [samples + len(response) - 1]."""
    length = len(clip) + len(response) - 1
    size = fft.next_fast_len(length, real=True)
    both = fft.rfft(clip.astype(np.float64), size) * fft.rfft(response, size)
    return fft.irfft(both, size)[:length]


@functools.cache
def _mu_law() -> np.ndarray:
    """What G.711 makes of every 16-bit sample, by its bits taken as a number from 0."""
    return mu_law_decode(mu_law_encode(np.arange(65_536).astype(np.uint16).view(np.int16)))


@functools.cache
def _band_pass() -> np.ndarray:
    """Windowed sinc, symmetric, of the telephone's band."""
    n = np.arange(_TAPS) - _TAPS // 2
    low, high = BAND[0] / SAMPLE_RATE, BAND[1] / SAMPLE_RATE
    ideal = 2 * high * np.sinc(2 * high * n) - 2 * low * np.sinc(2 * low * n)
    return ideal * np.kaiser(_TAPS, _KAISER)


def _within_scale(samples: np.ndarray) -> np.ndarray:
    peak = np.abs(samples).max(initial=0.0)
    return (samples / peak if peak > 1 else samples).astype(np.float32)
