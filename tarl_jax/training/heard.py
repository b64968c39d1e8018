"""What a policy's own audio encoder makes of what users said, and how much of it is wrong."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from tarl_jax.config import ModelConfig
from tarl_jax.models.audio_inputs import encode, pieces_of, tokens_of
from tarl_jax.models.params import Params
from tarl_jax.rollout.environment import Environment
from tarl_jax.speech.sound import Pieces
from tarl_jax.text.tokenizer import AUDIO
from tarl_jax.types import Trajectory
from tarl_jax.warm_start.transcription import collapsed, scores

MOST = 256  # clips that are transcribed at a time
_AT_A_TIME = 4  # pieces: one program
_WORD = re.compile(r"[^\W_]+(?:[#@.'_-]+[^\W_]+)*")


def write_down(
    params: Params, env: Environment, trajectories: Sequence[Trajectory]
) -> dict[str, float]:
    """Puts into the info of spoken turns, beside "spoken", the words that were "heard".

    Each of the encoder's outputs spells the nearest entry of the decoder's table, as in the warm
    start that taught it: without such a warm start they would mean nothing, and nothing is
    done. Of the trajectories' first `MOST` clips, each once.

    Returns: "word_error_rate": insertions, deletions and substitutions over the words that were
      written, punctuation and case left out; nothing where nothing was transcribed.
    """
    config = env.config
    if not (config.model.audio and config.warm_start.speech_stage.episodes):
        return {}
    known: dict[bytes, str] = {}
    wrong = words = 0
    for trajectory in trajectories:
        for segment in trajectory.segments:
            if segment.sound is None or "spoken" not in segment.info:
                continue
            clip = segment.sound.clip
            key = clip.tobytes()
            if key not in known:
                if len(known) == MOST:
                    continue
                known[key] = transcribe(params, env, clip)
            segment.info["heard"] = known[key]
            said = words_of(segment.text)
            wrong += edits(said, words_of(known[key]))
            words += len(said)
    return {"word_error_rate": wrong / words} if words else {}


def transcribe(params: Params, env: Environment, clip: np.ndarray) -> str:
    """What the encoder spells of a clip."""
    (placeholder,) = env.tokenizer.encode_markup(AUDIO)
    model = env.config.model
    parts = pieces_of(clip, model.audio).parts(_AT_A_TIME)
    best = np.concatenate([jax.device_get(_best(model, params, part)) for part in parts])
    path = best.reshape(-1)[: tokens_of(len(clip))]
    return env.tokenizer.decode(collapsed(path, placeholder))


def words_of(text: str) -> list[str]:
    """The words, numbers and addresses of a text, in lower case."""
    return _WORD.findall(text.lower())


def edits(one: Sequence[str], other: Sequence[str]) -> int:
    """Insertions, deletions and substitutions that make one of the other (V. Levenshtein, 1966)."""
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        before, row[0] = row[0], i
        for j, b in enumerate(other, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (a != b))
    return row[-1]


@functools.partial(jax.jit, static_argnums=0)
def _best(model: ModelConfig, params: Params, pieces: Pieces) -> Int[Array, "X slots"]:
    outputs: Float[Array, "X slots D"] = encode(params, model, pieces)
    return jnp.argmax(scores(params, outputs), axis=-1)
