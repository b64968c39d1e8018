"""The audio encoder learns to transcribe: connectionist temporal classification of its outputs.

The loss (CTC, A. Graves et al., ICML 2006) wants that the encoder's outputs, put through the
decoder's own final norm and head, spell what was said, with the placeholder of sound where nothing
new is. The norm forgets how long a vector is, and left alone the encoder's grow ten times as long
as what a decoder reads, which drowns what its layers add; so a second, small term wants each to be
the entry of the table that it spells. So sound comes to look like text to a decoder that can read,
and imitating spoken dialogues begins there, not at noise. The audio encoder may learn it alone too:
the rest then stays as it is.
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
from tarl_jax.models.audio_encoder import token_count
from tarl_jax.models.audio_inputs import encode
from tarl_jax.models.decoder import logits, rms_norm
from tarl_jax.models.params import Params
from tarl_jax.speech.sound import Pieces
from tarl_jax.warm_start.demonstrations import Transcript

ALIKE = 0.1  # weight of the second term
_LATE = 60  # mel frames before the first of clips that are strung together, at most
_PAUSE = 25  # mel frames between two of them, at most


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


def gradient(
    model: ModelConfig, placeholder: int, params: Params, batch: Clips
) -> tuple[Params, jax.Array]:
    """Gradient of both terms, and the first, CTC's, in nats per token of text."""
    (_, loss), slope = jax.value_and_grad(_losses, 2, has_aux=True)(
        model, placeholder, params, batch
    )
    return slope, loss


def gradient_of_encoder(
    model: ModelConfig, placeholder: int, rest: Params, encoder: Params, batch: Clips
) -> tuple[Params, jax.Array]:
    """The same for the encoder alone; `rest`: parameters, those of the encoder left out or not."""

    def losses_of(encoder: Params) -> tuple[jax.Array, jax.Array]:
        return _losses(model, placeholder, {**rest, "audio": encoder}, batch)

    (_, loss), slope = jax.value_and_grad(losses_of, has_aux=True)(encoder)
    return slope, loss


def _losses(
    model: ModelConfig, placeholder: int, params: Params, batch: Clips
) -> tuple[jax.Array, jax.Array]:
    """(both terms, CTC's alone)."""
    outputs = _outputs(params, model, batch)
    scores = _scores(params, model, outputs)
    losses = optax.ctc_loss(
        scores, batch.silent, batch.text, batch.absent, blank_id=placeholder
    )
    loss = losses.sum() / jnp.maximum((1 - batch.absent).sum(), 1)
    return loss + ALIKE * unlikeness(params["embed"], outputs, scores, batch.silent), loss


def unlikeness(
    table: Float[Array, "V D"],
    outputs: Float[Array, "B S D"],
    scores: Float[Array, "B S V"],
    silent: Float[Array, "B S"],
) -> Float[Array, ""]:
    """mean of |h - sum_v p(v) e_v|^2 over the clips' tokens / mean of |e_v|^2 over the table.

    h are the outputs, p is the softmax of the scores. Nothing but h learns by it.
    """
    meant = jax.lax.stop_gradient(jax.nn.softmax(scores) @ table)
    apart = jnp.square(outputs - meant).sum(-1) * (1 - silent)
    scale = jax.lax.stop_gradient(jnp.square(table).sum(-1).mean())
    return apart.sum() / jnp.maximum((1 - silent).sum(), 1) / scale


def spelling(params: Params, model: ModelConfig, batch: Clips) -> Float[Array, "B S V"]:
    """Scores of every entry of the vocabulary at each of the clips' tokens."""
    return _scores(params, model, _outputs(params, model, batch))


def _outputs(params: Params, model: ModelConfig, batch: Clips) -> Float[Array, "B S D"]:
    return encode(params, model, batch.pieces).reshape(*batch.silent.shape, -1)


def _scores(
    params: Params, model: ModelConfig, outputs: Float[Array, "B S D"]
) -> Float[Array, "B S V"]:
    return logits(params, rms_norm(outputs, params["final_norm"], model.rms_norm_eps))


def transcribed(scores: np.ndarray, tokens: int, placeholder: int) -> list[int]:
    """What a clip says by the scores [S, V] of its first so many tokens: best path, collapsed."""
    return collapsed(scores[:tokens].argmax(-1), placeholder)


def collapsed(path: np.ndarray, placeholder: int) -> list[int]:
    """The ids of a path [S] of CTC: one of those that follow each other, without the blank."""
    new = np.append(True, path[1:] != path[:-1]) if len(path) else np.zeros(0, bool)
    return path[new & (path != placeholder)].tolist()


def mixed_batches(
    transcripts: Sequence[Transcript], seconds: float, n_window: int, seed: int
) -> Iterator[Clips]:
    """One of clips as they are, one of clips strung together, and so on."""
    each = [kind(transcripts, seconds, n_window, seed) for kind in (clip_batches, strung_batches)]
    for both in zip(*each, strict=True):
        yield from both


def clip_batches(
    transcripts: Sequence[Transcript], seconds: float, n_window: int, seed: int
) -> Iterator[Clips]:
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


def strung_batches(
    transcripts: Sequence[Transcript], seconds: float, n_window: int, seed: int
) -> Iterator[Clips]:
    """Endless batches of clips strung together at random, with pauses, beginning anywhere.

    An encoder that knows only clips which begin at 0 learns where in them something is said: values
    that it has right alone it then has wrong in the midst of a turn. Rows have two lengths; the
    longer one has room for every clip.
    """
    rng = np.random.default_rng([seed, 3])
    size = 2 * n_window
    clips = [(_frames(t), t.text) for t in transcripts]
    most = -(-(max(len(mel) for mel, _ in clips) + _LATE) // size)
    choices = []
    for count in sorted({most, -(-most // 2)}):
        fitting = [clip for clip in clips if len(clip[0]) + _LATE <= count * size]
        if fitting:
            room = max(count * n_window // 6, max(len(text) for _, text in fitting))
            choices.append((count, room, fitting))
    while True:
        count, room, fitting = choices[int(rng.integers(len(choices)))]
        rows = max(1, round(seconds * 50 / (n_window * count)))
        strings = [_string(fitting, count, size, room, rng) for _ in range(rows)]
        yield batch_of(strings, n_window // 2, room)


def _string(
    clips: Sequence[tuple[np.ndarray, np.ndarray]], count: int, size: int, room: int,
    rng: np.random.Generator,
) -> Transcript:
    """Clips in so many pieces, as many as come before one that does not fit any more."""
    parts: list[np.ndarray] = []
    text: list[int] = []
    frames, pause = 0, int(rng.integers(_LATE + 1))
    while True:
        mel, words = clips[int(rng.integers(len(clips)))]
        if frames + pause + len(mel) > count * size or len(text) + len(words) > room:
            break
        parts += [np.full((pause, mel.shape[1]), mel.min(), np.float32), mel]
        text += words.tolist()
        frames += pause + len(mel)
        pause = int(rng.integers(_PAUSE + 1))
    whole = np.concatenate(parts)
    whole = np.pad(whole, ((0, count * size - frames), (0, 0))).reshape(count, size, -1)
    real = np.clip(frames - size * np.arange(count), 0, size).astype(np.int32)
    return Transcript(Pieces(whole, real), token_count(frames), np.array(text, np.int32))


def _frames(transcript: Transcript) -> np.ndarray:
    """The clip's mel frames, [frames, bins]."""
    mel = np.asarray(transcript.pieces.mel)
    return mel.reshape(-1, mel.shape[-1])[: int(transcript.pieces.frames.sum())]


def batch_of(clips: Sequence[Transcript], slots: int, longest: int) -> Clips:
    """A batch of clips of equally many pieces, with room for texts of `longest` tokens."""
    text = np.zeros((len(clips), longest), np.int32)
    absent = np.ones((len(clips), longest), np.float32)
    silent = np.ones((len(clips), clips[0].pieces.count * slots), np.float32)
    for row, clip in enumerate(clips):
        text[row, : len(clip.text)] = clip.text
        absent[row, : len(clip.text)] = 0.0
        silent[row, : clip.tokens] = 0.0
    return Clips(Pieces.joined([clip.pieces for clip in clips]), silent, text, absent)
