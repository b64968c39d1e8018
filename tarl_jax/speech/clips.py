"""Clips on disk: FLAC files that keep every sample, and a cache that is made of them."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from tarl_jax.parallel.files import replace
from tarl_jax.speech.sound import clip_name
from tarl_jax.speech.synthesis import (
    LEVELS,
    SAMPLE_RATE,
    SpeechError,
    Synthesiser,
    Voice,
    not_installed,
    to_clip,
    whole_wav,
)


def save_clip(path: Path, clip: np.ndarray) -> None:
    """Writes a clip by the name's ending, .flac or .wav, whole or not at all.

    Raises WriteError for a full disk, ValueError for samples that 16 bits do not hold, of which
    `quantise` makes some that do.
    """
    levels = clip * np.float32(LEVELS)
    if clip.ndim != 1 or not np.array_equal(levels, np.clip(np.rint(levels), -LEVELS, LEVELS - 1)):
        raise ValueError(f"{path}: samples {clip.shape} are not one row of 16-bit values")
    file = _soundfile()
    sound = io.BytesIO()
    file.write(
        sound, levels.astype(np.int16), SAMPLE_RATE, "PCM_16", format=path.suffix[1:].upper()
    )
    replace(path, sound.getvalue())


def load_clip(path: Path) -> np.ndarray:
    """The clip of a sound file, at any rate and with any number of channels.

    Raises SpeechError naming the file, of kind "rate", "not_finite" or "silent", "missing" where
    there is none, or "format" where it holds no sound.
    """
    soundfile = _soundfile()
    try:
        file = io.BytesIO(whole_wav(path.read_bytes())) if path.suffix.lower() == ".wav" else path
        samples, rate = soundfile.read(file, dtype="float32")
    except FileNotFoundError:
        raise SpeechError("missing", f"{path}: is not there") from None
    except (OSError, RuntimeError) as error:  # soundfile's own derive from the latter
        reason = getattr(error, "error_string", None) or getattr(error, "strerror", None) or error
        raise SpeechError("format", f"{path}: holds no sound that can be read ({reason})") from None
    return to_clip(samples, rate, str(path))


def save_clips(folder: Path, clips: Iterable[np.ndarray]) -> list[str]:
    """Writes clips under the names that `clip_name` gives them; returns those, in order."""
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    for clip in clips:
        name = clip_name(clip)
        if not (folder / name).exists():
            save_clip(folder / name, clip)
        names.append(name)
    return names


def load_clips(folder: Path, names: Iterable[str]) -> list[np.ndarray]:
    """The clips of those names, to the sample. Raises as `load_clip`."""
    return [load_clip(folder / name) for name in names]


class CachedSynthesiser:
    """Says each text in each voice once, and then reads it from `folder`.

    Several processes may share a folder: files are moved into place whole, and whoever makes one
    makes the same. A file that cannot be read is made again.
    """

    def __init__(self, synthesiser: Synthesiser, folder: Path):
        self._synthesiser = synthesiser
        self._folder = folder

    def say(self, text: str, voice: Voice) -> np.ndarray:
        """The clip. Raises SpeechError; what failed is not kept."""
        path = self.path(text, voice)
        if path.exists():
            try:
                return load_clip(path)
            except SpeechError:  # half a file of a disk that was full, say
                pass
        clip = self._synthesiser.say(text, voice)
        path.parent.mkdir(parents=True, exist_ok=True)
        save_clip(path, clip)
        return clip

    def path(self, text: str, voice: Voice) -> Path:
        """Where the clip is kept. Raises SpeechError."""
        key = json.dumps([self.version(voice), dataclasses.asdict(voice), text])
        name = hashlib.sha256(key.encode()).hexdigest()
        return self._folder / name[:2] / f"{name[2:]}.flac"

    def version(self, voice: Voice) -> str:
        """The synthesiser's."""
        return self._synthesiser.version(voice)

    def close(self) -> None:
        """Closes the synthesiser."""
        self._synthesiser.close()


def _soundfile():
    try:
        import soundfile
    except (ImportError, OSError) as error:
        raise not_installed("soundfile") from error
    return soundfile
