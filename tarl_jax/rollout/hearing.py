"""What the policy hears: clips as the decoder reads them, a few pieces of sound at a time."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from tarl_jax.config import ModelConfig
from tarl_jax.models import decoder
from tarl_jax.models.audio_inputs import clip_sizes, encode, longest_clip, pieces_of, tokens_of
from tarl_jax.parallel.compilations import Wanted, named
from tarl_jax.parallel.mesh import replicated
from tarl_jax.speech.sound import Pieces

PIECES = 4  # of sound, 2 s each, that are encoded at a time


class Hearing:
    """Encodes clips on the engine's mesh.

    Args of the constructor:
      longest: tokens of a dialogue.

    Attributes:
      width: of the encoder's outputs; 0: nobody hears.
    """

    def __init__(self, model: ModelConfig, longest: int, mesh: Mesh):
        self._audio = model.audio
        self.width = model.d_model if model.audio else 0
        self._longest = longest

        def of_pieces(params: decoder.Params, pieces: Pieces) -> Float[Array, "X slots D"]:
            return encode(params, model, pieces).astype(jnp.float32)

        self._encode = jax.jit(named("engine_encode", of_pieces), out_shardings=replicated(mesh))

    def __call__(self, params: decoder.Params, clip: np.ndarray) -> np.ndarray:
        """What the decoder reads in place of a clip's tokens: float32 [tokens, D]."""
        parts = pieces_of(clip, self._audio).parts(PIECES)
        inputs = np.concatenate([jax.device_get(self._encode(params, part)) for part in parts])
        return inputs.reshape(-1, inputs.shape[-1])[: tokens_of(len(clip))]

    def piece(self, params: decoder.Params, piece: Pieces) -> np.ndarray:
        """The encoder's outputs of one piece, float32 [1, slots, D]."""
        return jax.device_get(self._encode(params, piece))

    def wanted(self, params: decoder.Params) -> list[Wanted]:
        """What has to be compiled, for all clips of a dialogue; nothing where nobody hears."""
        found = []
        for samples in clip_sizes(self._audio, longest_clip(self._longest)) if self._audio else ():
            silence = np.zeros(samples, np.float32)
            for part in pieces_of(silence, self._audio).parts(PIECES):
                found.append(Wanted("encode", True, self._encode, (params, part)))
        return found
