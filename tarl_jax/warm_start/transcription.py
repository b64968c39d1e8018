"""The audio encoder learns to transcribe: connectionist temporal classification of its outputs.

The loss (CTC, A. Graves et al., ICML 2006) wants that the encoder's outputs spell what was said,
with the placeholder of sound where nothing new is. An output spells the entry of the decoder's
table that it is nearest to: so sound comes to look like text to a decoder that can read, and
imitating spoken dialogues begins there, not at noise. (The decoder's own head is no measure of
that: what it takes for a token is far from the token's entry.) CTC is content with an output that
lies beyond an entry, as seen from the others; a second term wants it to be the entry. The audio
encoder may learn it alone too: the rest then stays as it is.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from tarl_jax.config import ModelConfig
from tarl_jax.models.audio_inputs import encode
from tarl_jax.models.params import Params
from tarl_jax.warm_start.clips import Clips

ALIKE = 1.0  # weight of the second term
# Nats by which an output at an entry prefers it to another that is as far away as a table's entries
# are long. Those of two names may be at 0.15 of that squared distance.
SHARP = 50.0


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
    found = scores(params, outputs)
    losses = optax.ctc_loss(
        found, batch.silent, batch.text, batch.absent, blank_id=placeholder
    )
    loss = losses.sum() / jnp.maximum((1 - batch.absent).sum(), 1)
    apart = unlikeness(params["embed"], outputs, found, batch.silent, placeholder)
    return loss + ALIKE * apart, loss


def unlikeness(
    table: Float[Array, "V D"],
    outputs: Float[Array, "B S D"],
    scores: Float[Array, "B S V"],
    silent: Float[Array, "B S"],
    placeholder: int,
) -> Float[Array, ""]:
    """|h - sum_v p(v) e_v|^2 / mean of |e_v|^2 over the table: its mean where words are, and else.

    The sum of two means over the clips' tokens, each weighted by 1 - p(placeholder), and by
    p(placeholder): words are few. h are the outputs, p is the softmax of the scores. Nothing but h
    learns by it.
    """
    shares = jax.lax.stop_gradient(jax.nn.softmax(scores))
    table = jax.lax.stop_gradient(table)
    apart = jnp.square(outputs - shares @ table).sum(-1)
    rest = shares[..., placeholder] * (1 - silent)
    words = 1 - silent - rest
    means = [(w * apart).sum() / jnp.maximum(w.sum(), 1) for w in (words, rest)]
    return (means[0] + means[1]) / _mean_square(table)


def spelling(params: Params, model: ModelConfig, batch: Clips) -> Float[Array, "B S V"]:
    """`scores` of the clips' tokens."""
    return scores(params, _outputs(params, model, batch))


def _outputs(params: Params, model: ModelConfig, batch: Clips) -> Float[Array, "B S D"]:
    return encode(params, model, batch.pieces).reshape(*batch.silent.shape, -1)


def scores(params: Params, outputs: Float[Array, "*B D"]) -> Float[Array, "*B V"]:
    """-SHARP |h - e_v|^2 / mean of |e_v|^2, less what all entries v of the table share."""
    table = params["embed"].astype(jnp.float32)
    nearness = outputs.astype(jnp.float32) @ table.T - jnp.square(table).sum(-1) / 2
    return 2 * SHARP / jax.lax.stop_gradient(_mean_square(table)) * nearness


def _mean_square(table: Float[Array, "V D"]) -> Float[Array, ""]:
    """Of the lengths of its entries."""
    return jnp.square(table).sum(-1).mean()


def transcribed(scores: np.ndarray, tokens: int, placeholder: int) -> list[int]:
    """What a clip says by the scores [S, V] of its first so many tokens: best path, collapsed."""
    return collapsed(scores[:tokens].argmax(-1), placeholder)


def collapsed(path: np.ndarray, placeholder: int) -> list[int]:
    """The ids of a path [S] of CTC: one of those that follow each other, without the blank."""
    new = np.append(True, path[1:] != path[:-1]) if len(path) else np.zeros(0, bool)
    return path[new & (path != placeholder)].tolist()
