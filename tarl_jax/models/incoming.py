"""A clip that arrives in parts, heard while it is spoken: features and encoder.

What comes out is what the whole clip gives at once. Two things depend on what is still to come: the
last frames under the end of a part, which wait for their samples, and the floor 8 below the clip's
largest log power, under which nothing lies. Where it rises, pieces that held less are encoded
again. `rollout/telephone.py` has a policy read along.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import numpy as np

from tarl_jax.config import InputError, ModelConfig
from tarl_jax.models import audio_encoder
from tarl_jax.models.audio_encoder import HOP, WINDOW
from tarl_jax.speech.sound import Pieces

_ROWS = 32  # frames that features are made of at a time: one program for parts of any size
_HALF = WINDOW // 2
_log_power = jax.jit(audio_encoder.log_power, static_argnums=1)
Encode = Callable[[Pieces], np.ndarray]  # of one piece: [1, slots, D]


class IncomingClip:
    """The encoder's outputs of a clip, as far as it has come.

    Attributes:
      encoded: float32 [tokens, D]; of its whole pieces, and once it has ended of all of it.
      again: how many pieces were encoded more than once.
    """

    def __init__(self, model: ModelConfig, encode: Encode):
        self._audio = model.audio
        self._size = 2 * model.audio.n_window  # frames of a piece
        self._encode = encode
        self._samples = np.zeros(0, np.float32)
        self._log = np.zeros((0, model.audio.num_mel_bins), np.float32)  # of all frames, no floor
        self._peak = -np.inf
        self._pieces: list[np.ndarray] = []
        self._floor: list[float] = []  # under which each piece was encoded
        self.encoded = np.zeros((0, model.d_model), np.float32)
        self.again = 0

    def feed(self, samples: np.ndarray) -> int:
        """The next samples, float32 at 16 kHz; how many of `encoded`'s tokens are as before."""
        self._samples = np.concatenate((self._samples, samples))
        if len(self._samples) <= _HALF:  # its beginning is mirrored
            return 0
        self._more_frames((len(self._samples) - _HALF) // HOP + 1)
        return self._encode_pieces(len(self._log) // self._size, len(self._log))

    def end(self) -> int:
        """No sample comes any more. Returns as `feed`. Raises InputError for a clip without any."""
        if not len(self._samples):
            raise InputError("a clip of no samples has nothing to hear")
        frames = audio_encoder.frame_count(len(self._samples))
        touching = audio_encoder.frame_count(len(self._samples) + _HALF)
        silence = max(_HALF + HOP * (touching - 1) - len(self._samples), 0)
        self._samples = np.pad(self._samples, (0, silence))
        self._more_frames(touching)
        self._log = self._log[:frames]
        kept = self._encode_pieces(-(-frames // self._size), frames)
        self.encoded = self.encoded[: audio_encoder.token_count(frames)]
        return min(kept, len(self.encoded))

    def _more_frames(self, count: int) -> None:
        padded = np.concatenate((self._samples[_HALF:0:-1], self._samples))
        for first in range(len(self._log), count, _ROWS):
            here = min(_ROWS, count - first)
            begin = HOP * (first + np.minimum(np.arange(_ROWS), here - 1))
            framed = padded[begin[:, None] + np.arange(WINDOW)]
            log = np.asarray(_log_power(framed, self._audio.num_mel_bins))[:here]
            self._log = np.concatenate((self._log, log))
            self._peak = max(self._peak, float(log.max()))

    def _encode_pieces(self, count: int, frames: int) -> int:
        floor = self._peak - 8.0
        kept: int | None = None
        for i in range(count):
            log = self._log[i * self._size : min((i + 1) * self._size, frames)]
            known = i < len(self._pieces)
            if known and (floor <= self._floor[i] or log.min() >= floor):
                continue
            mel = (np.maximum(log, floor) + 4) / 4
            mel = np.pad(mel, ((0, self._size - len(mel)), (0, 0)))[None]
            found = self._encode(Pieces(mel, np.array([len(log)], np.int32)))[0]
            self._pieces[i : i + 1], self._floor[i : i + 1] = [found], [floor]
            self.again += known
            kept = i if kept is None else kept
        if self._pieces:
            self.encoded = np.concatenate(self._pieces)
        return len(self.encoded) if kept is None else kept * self._size // 4
