"""What a policy hears: clips as pieces of mel frames, and the decoder's inputs made of them.

The encoder of `audio_encoder.py` sees 2 * n_window frames at a time (2 s), so a clip may be cut
into pieces of that many and the pieces of many clips encoded together: one shape serves all. A
whole piece has n_window / 2 tokens; only the last of a clip has fewer.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from tarl_jax.config import ModelConfig
from tarl_jax.config.audio import AudioConfig
from tarl_jax.models import audio_encoder, decoder
from tarl_jax.models.params import Params
from tarl_jax.speech.sound import AudioInputs, Pieces, Sound

_log_mel = jax.jit(audio_encoder.log_mel, static_argnums=1)


def tokens_of(samples: int) -> int:
    """Tokens of a clip of so many samples, 25 a second."""
    return audio_encoder.token_count(audio_encoder.frame_count(samples))


def longest_clip(tokens: int) -> int:
    """Samples of the longest clip of so many tokens."""
    return audio_encoder.HOP * (4 * tokens + 2)


def clip_sizes(config: AudioConfig, samples: int) -> list[int]:
    """What clips of up to so many samples are padded to: one piece, 2, 4, 8 … pieces."""
    sizes = [2 * config.n_window * audio_encoder.HOP]
    while sizes[-1] < samples:
        sizes.append(2 * sizes[-1])
    return sizes


def pieces_of(clip: np.ndarray, config: AudioConfig) -> Pieces:
    """A clip's pieces."""
    room = clip_sizes(config, len(clip))[-1]
    found = pieces_of_rows(np.pad(clip, (0, room - len(clip)))[None], [len(clip)], config)
    count = np.count_nonzero(found.frames)
    return Pieces(found.mel[:count], found.frames[:count])


def pieces_of_rows(
    clips: np.ndarray, lengths: Sequence[int], config: AudioConfig
) -> Pieces:
    """The pieces of several clips, silent ones behind each clip's end.

    Args:
      clips: float32 [B, samples], of whole pieces; zero behind a clip's length.
      lengths: samples of each.
    """
    size = 2 * config.n_window
    mel = np.array(_log_mel(clips, config.num_mel_bins))
    frames = audio_encoder.frame_count(np.asarray(lengths))[:, None]
    mel[np.arange(mel.shape[1]) >= frames] = 0.0
    real = np.clip(frames - np.arange(0, mel.shape[1], size), 0, size).astype(np.int32)
    return Pieces(mel.reshape(-1, size, mel.shape[-1]), real.reshape(-1))


def audio_inputs_of(
    sounds: Iterable[Sound], length: int, config: AudioConfig
) -> AudioInputs | None:
    """The sound in a sequence of so many tokens, its `places` of shape [S]; None: there is none."""
    found: list[Pieces] = []
    places = np.zeros(length, np.int32)
    slots, begin = config.n_window // 2, 1
    for sound in sounds:
        found.append(pieces_of(sound.clip, config))
        places[sound.first : sound.first + sound.tokens] = begin + np.arange(sound.tokens)
        begin += found[-1].count * slots
    return AudioInputs(Pieces.joined(found), places) if found else None


def encode(
    params: Params, model: ModelConfig, pieces: Pieces
) -> Float[Array, "X slots D"]:
    """The pieces as the decoder reads them, slots = n_window / 2; zero behind a piece's tokens."""
    encoder = decoder.cast(params["audio"], model.dtype)
    return audio_encoder.audio_embeddings(encoder, model.audio, pieces.mel, pieces.frames)[0]


def hidden_states(
    params: Params,
    model: ModelConfig,
    tokens: Int[Array, "B S"],
    segments: Int[Array, "B S"] | None,
    audio_inputs: AudioInputs | None,
) -> Float[Array, "B S D"]:
    """`decoder.hidden_states` of tokens some of which stand for sound."""
    whole = functools.partial(decoder.hidden_states, params, model, tokens, segments)
    if audio_inputs is None:
        return whole()
    encoded = encode(params, model, audio_inputs.pieces)
    encoded = encoded.reshape(-1, encoded.shape[-1])[jnp.maximum(audio_inputs.places - 1, 0)]
    own = decoder.embed(params, tokens).astype(encoded.dtype)
    return whole(jnp.where(audio_inputs.places[..., None] > 0, encoded, own))
