"""What the update works on."""

from __future__ import annotations

import jax
from flax import struct

from tarl_jax.speech.sound import AudioInputs


@struct.dataclass
class Batch:
    """Padded sequences for one forward and backward pass.

    Attributes:
      tokens: int32 [B, S]; 0 beyond the end of a row.
      sampled: float32 [B, S]; 1 where the token at this position was drawn by the policy and
        counts in the loss.
      log_probs: float32 [B, S]; log-probability before the update: the sampler's, or the trainer's
        own where that is corrected for (`rl.tis_cap`); 0 elsewhere.
      advantages: float32 [B, S]; 0 where not sampled.
      values, returns: float32 [B, S]; what the value model said at the rollout and what it learns
        to say, of the state before each sampled token; None without a value model.
      segments: int32 [B, S]; number of the sequence that a position belongs to, where rows hold
        several; None: one sequence per row.
      shares: float32 [B, S]; 1 over the number of sampled tokens of the episode that a token is of,
        where it counts in the loss, else 0: an episode may be several sequences. None: each is one.
      audio_inputs: the sound at some of the tokens; None: all of them are text.
    """

    tokens: jax.Array
    sampled: jax.Array
    log_probs: jax.Array
    advantages: jax.Array
    segments: jax.Array | None = None
    values: jax.Array | None = None
    returns: jax.Array | None = None
    shares: jax.Array | None = None
    audio_inputs: AudioInputs | None = None
