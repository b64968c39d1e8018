"""Sound, as a record keeps it, and as arrays. Axis letters are those of `types`."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from flax import struct


def clip_name(clip: np.ndarray) -> str:
    """The name of a clip's file, made of its samples (float32)."""
    return f"{hashlib.sha256(clip.tobytes()).hexdigest()[:24]}.flac"


@dataclasses.dataclass(frozen=True, eq=False)
class Sound:
    """What some tokens of a segment sound like.

    Attributes:
      first: index in the segment of the first placeholder token.
      tokens: how many placeholders follow one another, that one included.
      clip: float32 [samples], mono at 16 kHz, each sample a whole number of 1/32768.
    """

    first: int
    tokens: int
    clip: np.ndarray

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sound) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def _key(self) -> tuple[int, int, bytes]:
        return self.first, self.tokens, self.clip.tobytes()

    def to_json(self) -> dict[str, Any]:
        """Names the clip; its samples are kept elsewhere, under that name."""
        return {"first": self.first, "tokens": self.tokens, "clip": clip_name(self.clip)}


@struct.dataclass
class Pieces:
    """Clips as log-mel, cut into pieces of 2 s, one behind the other (`models/audio_inputs.py`).

    Attributes:
      mel: float32 [X, frames, bins]; frames = 2 * n_window.
      frames: int32 [X]; how many of them are real.
    """

    mel: jax.Array | np.ndarray
    frames: jax.Array | np.ndarray

    @property
    def count(self) -> int:
        return self.frames.shape[0]

    @property
    def slots(self) -> int:
        """Tokens of a whole piece."""
        return self.mel.shape[1] // 4

    @classmethod
    def joined(cls, parts: Sequence[Pieces]) -> Pieces:
        """One behind the other."""
        return cls(
            np.concatenate([p.mel for p in parts]), np.concatenate([p.frames for p in parts])
        )

    def parts(self, size: int) -> list[Pieces]:
        """As many at a time, silent ones behind the last."""
        whole = self.padded(-(-self.count // size) * size)
        begins = range(0, whole.count, size)
        return [Pieces(whole.mel[i : i + size], whole.frames[i : i + size]) for i in begins]

    def padded(self, count: int) -> Pieces:
        """With silent pieces behind, `count` in all."""
        more = count - self.count
        return Pieces(np.pad(self.mel, ((0, more), (0, 0), (0, 0))), np.pad(self.frames, (0, more)))


@struct.dataclass
class AudioInputs:
    """The sound in a batch, or in one sequence.

    Attributes:
      pieces: of all its rows.
      places: int32 [B, S]; 1 + which of the pieces' slots, counted through, stands at a position;
        0 where a token stands for itself.
    """

    pieces: Pieces
    places: jax.Array | np.ndarray
