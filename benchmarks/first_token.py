"""Time from the user's last word to the policy's first token, clips heard whole or as they come.

    python benchmarks/first_token.py [--size qwen2_5_omni_3b] [--seconds 2 4 8 16] [--part 0.2]

Random weights of configs/omni_tarl.py's size, a spoken turn of noise that long behind 200 tokens of
dialogue, all programs compiled before. Whole: features, encoder and prefill begin when the turn has
ended. As it comes: parts of `--part` seconds are fed while the user speaks (`models/incoming.py`),
and only what the last one brings is left; "behind" is the time that a part takes at most, which
must be less than the part for the policy to keep up. Medians of `--rounds`.
"""

from __future__ import annotations

import argparse
import statistics
import time

import jax
import numpy as np

from tarl_jax.config import ModelConfig, from_config_dict
from tarl_jax.config.presets import with_speech
from tarl_jax.models import decoder
from tarl_jax.models.audio_inputs import encode, pieces_of, tokens_of
from tarl_jax.models.cache import empty_cache
from tarl_jax.models.incoming import Encode, IncomingClip, Prefill
from tarl_jax.speech.synthesis import SAMPLE_RATE

VOCAB, BEFORE = 4096, list(range(200))
BEHIND = [1, 2, 3, 4]  # the turn's end, and the beginning of the agent's


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="", help="of configs/omni_tarl.py")
    parser.add_argument("--seconds", type=float, nargs="+", default=[2.0, 4.0, 8.0, 16.0])
    parser.add_argument("--part", type=float, default=0.2)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    model = from_config_dict(with_speech(args.size)).model
    params = decoder.init_params(model, VOCAB, jax.random.key(0))
    encoder = jax.jit(lambda audio, pieces: encode({"audio": audio}, model, pieces))
    unstacked = decoder.cast(decoder.unstack(params), model.dtype)

    def encoded(pieces) -> np.ndarray:
        return np.asarray(encoder(params["audio"], pieces), np.float32)

    print("| seconds | whole, ms | as it comes, ms | behind, ms |\n|---|---|---|---|")
    for seconds in args.seconds:
        clip = np.random.default_rng(0).normal(0, 0.1, round(seconds * SAMPLE_RATE))
        rounds = [measured(model, unstacked, encoded, clip.astype(np.float32), args.part)
                  for _ in range(args.rounds + 1)][1:]  # the first one compiles
        row = [statistics.median(column) * 1000 for column in zip(*rounds, strict=True)]
        print(f"| {seconds:g} | " + " | ".join(f"{x:.0f}" for x in row) + " |", flush=True)


def measured(
    model: ModelConfig, params: decoder.Params, encoded: Encode, clip: np.ndarray, part: float
) -> tuple[float, float, float]:
    """Seconds: whole, as it comes, and of the slowest part."""
    room = len(BEFORE) + tokens_of(len(clip)) + 64
    row = Prefill(params, model, empty_cache(model, 1, room))
    row.tokens(BEFORE)
    begun = time.perf_counter()
    pieces = pieces_of(clip, model.audio)
    outputs = np.concatenate([encoded(one) for one in pieces.parts(1)])
    row.embeddings(outputs.reshape(-1, outputs.shape[-1])[: tokens_of(len(clip))])
    first = int(row.tokens(BEHIND).argmax())
    whole = time.perf_counter() - begun

    row = Prefill(params, model, empty_cache(model, 1, room))
    row.tokens(BEFORE)
    incoming, size, took = IncomingClip(model, encoded), round(part * SAMPLE_RATE), [0.0]
    for at in range(0, len(clip), size):
        last = at + size >= len(clip)
        begun = time.perf_counter()
        kept = incoming.feed(clip[at : at + size])
        if last:
            kept = min(kept, incoming.end())
        if len(incoming.encoded) > kept:
            row.embeddings(incoming.encoded[kept:], len(BEFORE) + kept)
        jax.block_until_ready(row.cache)
        if last:
            same = int(row.tokens(BEHIND).argmax())
            left = time.perf_counter() - begun
        else:
            took.append(time.perf_counter() - begun)
    if same != first:
        raise AssertionError(f"token {same} as it comes, {first} from the whole clip")
    return whole, left, max(took)


if __name__ == "__main__":
    main()
