"""How well ears learn to transcribe, without the decoder's layers: numbers alone, turns, both.

    python benchmarks/listening.py --episodes 400 --value-steps 300 --steps 200

Trains the default encoder and the table of embeddings from random parameters on what users of the
embedded shop say, by `tarl_jax.listening`: first values said alone, then these and whole turns.
After each part it prints how many clips that were not trained on come out right, to the token, and
how many of their three-digit numbers.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import re
import time

import jax
import numpy as np
import optax

from tarl_jax import listening
from tarl_jax.config import from_config_dict
from tarl_jax.demonstrations import Transcript, demonstrate_aloud
from tarl_jax.models import decoder
from tarl_jax.presets import hearing
from tarl_jax.rollout.world import World
from tarl_jax.speech.service import Speech
from tarl_jax.text.tokenizer import AUDIO

HELD_OUT = 100  # clips of each sort


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--episodes", type=int, default=400)
    parser.add_argument("--value-steps", type=int, default=300)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=40.0, help="of sound in a batch")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    args = parser.parse_args()
    config = from_config_dict(hearing(""))
    world = World.from_config(config)
    begun = time.perf_counter()
    with Speech.from_config(dataclasses.replace(config.speech, cache_dir="")) as speech:
        aloud, values = demonstrate_aloud(
            config, world, config.warm_start.clerk, args.episodes, speech
        )
    turns = [transcript for one in aloud for transcript in one.said]
    world.close()
    print(f"{len(values)} values and {len(turns)} turns in {time.perf_counter() - begun:.0f} s")
    held = {"values": values[:HELD_OUT], "turns": turns[:HELD_OUT]}
    values, turns = values[HELD_OUT:], turns[HELD_OUT:]
    params = decoder.init_params(config.model, world.vocab_size, jax.random.key(0))
    params["embed"] = 5 * params["embed"]  # about what a policy that reads has
    for name, steps, clips in (
        ("values", args.value_steps, values), ("values and turns", args.steps, values + turns)
    ):
        begun = time.perf_counter()
        params = train(params, config, world, clips, steps, args)
        print(f"{name}: {steps} steps in {time.perf_counter() - begun:.0f} s")
        for sort, of in held.items():
            right, numbers, count = score(params, config, world, of)
            print(f"  {sort}: {right:.2f} of {len(of)} right, {numbers:.2f} of {count} numbers")


def train(params, config, world, clips: list[Transcript], steps: int, args):
    (placeholder,) = world.tokenizer.encode_markup(AUDIO)
    schedule = optax.warmup_cosine_decay_schedule(0.0, args.learning_rate, steps // 20, steps)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.98))
    state = optimizer.init(params)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state, batch):
        slope, _ = listening.gradient(config.model, placeholder, params, batch)
        updates, state = optimizer.update(slope, state, params)
        return optax.apply_updates(params, updates), state

    batches = listening.spoken_batches(clips, args.seconds, config.model.audio.n_window, 0)
    for _ in range(steps):
        params, state = step(params, state, next(batches))
    return params


def score(params, config, world, clips: list[Transcript]) -> tuple[float, float, int]:
    """(share of clips that come out right, share of numbers that do, how many numbers)."""
    (placeholder,) = world.tokenizer.encode_markup(AUDIO)
    spell = jax.jit(functools.partial(listening.spelling, model=config.model))
    longest = max(len(clip.text) for clip in clips)
    right, found = [], []
    for clip in clips:
        batch = listening.batch_of([clip], config.model.audio.n_window // 2, longest)
        scores = np.asarray(spell(params, batch=batch))[0]
        said = listening.transcribed(scores, clip.tokens, placeholder)
        right.append(said == clip.text.tolist())
        wanted = re.findall(r"\d{3}", world.tokenizer.decode(clip.text))
        heard = re.findall(r"\d{3}", world.tokenizer.decode(said))
        found += [number in heard for number in wanted]
    return float(np.mean(right)), float(np.mean(found)), len(found)


if __name__ == "__main__":
    main()
