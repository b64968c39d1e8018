"""Ears learn to transcribe: connectionist temporal classification on the encoder's outputs.

The loss (CTC, A. Graves et al., ICML 2006) wants that what is heard, put through the decoder's own
final norm and head, spells what was said, with the placeholder of sound where nothing new is. So
sound comes to look like text to a decoder that can read, and imitating spoken dialogues begins
there, not at noise. Ears may learn it alone too: the rest then stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jaxtyping import Array, Float

from tarl_jax.config import ModelConfig
from tarl_jax.demonstrations import Transcript
from tarl_jax.models.decoder import logits, rms_norm
from tarl_jax.models.hearing import encode
from tarl_jax.models.params import Params
from tarl_jax.sounds import Pieces


@struct.dataclass
class Spoken:
    """Clips of equally many pieces.

    Attributes:
      pieces: of all clips, one behind the other.
      silent: float32 [B, S]; 1 behind a clip's tokens.
      text: int32 [B, T]; absent: float32 [B, T]; 1 behind a text's end.
    """

    pieces: Pieces
    silent: np.ndarray
    text: np.ndarray
    absent: np.ndarray


def gradient(
    model: ModelConfig, placeholder: int, params: Params, batch: Spoken
) -> tuple[Params, jax.Array]:
    """Gradient of the loss, and the loss, in nats per token of text."""
    loss, slope = jax.value_and_grad(_loss, 2)(model, placeholder, params, batch)
    return slope, loss


def gradient_of_ears(
    model: ModelConfig, placeholder: int, rest: Params, ears: Params, batch: Spoken
) -> tuple[Params, jax.Array]:
    """The same for the encoder alone; `rest`: parameters, those of the encoder left out or not."""

    def loss_of(ears: Params) -> jax.Array:
        return _loss(model, placeholder, {**rest, "audio": ears}, batch)

    loss, slope = jax.value_and_grad(loss_of)(ears)
    return slope, loss


def _loss(model: ModelConfig, placeholder: int, params: Params, batch: Spoken) -> jax.Array:
    losses = optax.ctc_loss(
        spelling(params, model, batch), batch.silent, batch.text, batch.absent,
        blank_id=placeholder,
    )
    return losses.sum() / jnp.maximum((1 - batch.absent).sum(), 1)


def spelling(params: Params, model: ModelConfig, batch: Spoken) -> Float[Array, "B S V"]:
    """Scores of every entry of the vocabulary at each of the clips' tokens."""
    heard = encode(params, model, batch.pieces).reshape(*batch.silent.shape, -1)
    return logits(params, rms_norm(heard, params["final_norm"], model.rms_norm_eps))


def transcribed(scores: np.ndarray, tokens: int, placeholder: int) -> list[int]:
    """What a clip says by the scores [S, V] of its first so many tokens: best path, collapsed."""
    best = scores[:tokens].argmax(-1)
    new = np.append(True, best[1:] != best[:-1]) if tokens else np.zeros(0, bool)
    return best[new & (best != placeholder)].tolist()


def spoken_batches(
    transcripts: Sequence[Transcript], seconds: float, n_window: int, seed: int
) -> Iterator[Spoken]:
    """Endless batches of about so many seconds of sound; clips of equally many pieces together."""
    rng = np.random.default_rng([seed, 2])
    by_count: dict[int, list[Transcript]] = {}
    for transcript in transcripts:
        by_count.setdefault(transcript.pieces.count, []).append(transcript)
    longest = {count: max(len(t.text) for t in clips) for count, clips in by_count.items()}
    while True:
        plans = []
        for count, clips in by_count.items():
            rows = max(1, round(seconds * 50 / (n_window * count)))
            order = rng.permutation(len(clips))
            plans += [
                # The last one is filled up from the beginning: all of a count have one shape.
                [clips[order[i % len(clips)]] for i in range(begin, begin + rows)]
                for begin in range(0, len(clips), rows)
            ]
        for place in rng.permutation(len(plans)):
            chosen = plans[place]
            yield batch_of(chosen, n_window // 2, longest[chosen[0].pieces.count])


def batch_of(clips: Sequence[Transcript], slots: int, longest: int) -> Spoken:
    """A batch of clips of equally many pieces, with room for texts of `longest` tokens."""
    text = np.zeros((len(clips), longest), np.int32)
    absent = np.ones((len(clips), longest), np.float32)
    silent = np.ones((len(clips), clips[0].pieces.count * slots), np.float32)
    for row, clip in enumerate(clips):
        text[row, : len(clip.text)] = clip.text
        absent[row, : len(clip.text)] = 0.0
        silent[row, : clip.tokens] = 0.0
    return Spoken(Pieces.joined([clip.pieces for clip in clips]), silent, text, absent)
