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

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from tarl_jax.config import ModelConfig
from tarl_jax.models.audio_inputs import encode
from tarl_jax.models.decoder import logits, rms_norm
from tarl_jax.models.params import Params
from tarl_jax.warm_start.clips import Clips

ALIKE = 0.1  # weight of the second term


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
