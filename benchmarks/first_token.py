"""Time from the user's last word to the policy's first token, clips heard whole or as they come.

    python benchmarks/first_token.py [--size qwen2_5_omni_3b] [--seconds 2 4 8 16] [--rounds 5]

Random weights of configs/omni_tarl.py's size, a spoken turn of noise that long behind 200 tokens of
dialogue, all programs compiled before. Whole: features, encoder and prefill begin when the turn has
ended. As it comes: the clip is said in as many seconds as it has, in parts of 0.2 s, and is read
meanwhile (`rollout/telephone.py`); "left" is how much of the sound was read behind it.
Medians of `--rounds`, the ways in turns.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time

import jax
import numpy as np

from tarl_jax.config import from_config_dict
from tarl_jax.config.presets import with_speech
from tarl_jax.models import decoder
from tarl_jax.models.audio_inputs import tokens_of
from tarl_jax.rollout.environment import Environment
from tarl_jax.rollout.sampling import Sampling
from tarl_jax.rollout.telephone import Telephone
from tarl_jax.rollout.workers import Answer, Turn
from tarl_jax.speech.sound import Sound
from tarl_jax.speech.synthesis import SAMPLE_RATE

BEFORE = 200


class Call:
    """A dialogue that is answered once behind a clip: said, or given whole."""

    seed, outside, shared = 0, True, 0

    def __init__(self, env: Environment, clip: np.ndarray, telephone: Telephone | None):
        self._chat, self._clip, self._telephone = env.chat, clip, telephone
        self._asked = 0.0
        self.seconds = 0.0

    def start(self) -> list[int]:
        return list(range(BEFORE))

    def turn(self, turn: Turn) -> Answer | None:
        now = time.monotonic()
        if self._asked:
            self.seconds = now - self._asked
            return None
        if self._telephone:
            self._telephone.say(self._clip)
        tokens = tokens_of(len(self._clip))
        ids, place = self._chat.spoken(tokens)
        before = [] if turn.ids[-1] == self._chat.stop_id else [self._chat.stop_id]
        sound = Sound(len(before) + place, tokens, self._clip)
        self._asked = time.monotonic()
        return Answer([*before, *ids, *self._chat.begin], sounds=(sound,))

    def cut(self) -> None: ...


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="", help="of configs/omni_tarl.py")
    parser.add_argument("--seconds", type=float, nargs="+", default=[2.0, 4.0, 8.0, 16.0])
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    config = from_config_dict(with_speech(args.size))
    rollout = dataclasses.replace(config.rollout, max_turn_tokens=1)
    env = Environment.from_config(dataclasses.replace(config, rollout=rollout))
    params = decoder.init_params(config.model, env.vocab_size, jax.random.key(0))
    with Telephone(env, params, Sampling(0.0)) as telephone:
        telephone.compile(params)
        print("| seconds | whole, ms | as it comes, ms | less | left |\n|---|---|---|---|---|")
        for seconds in args.seconds:
            noise = np.random.default_rng(0).normal(0, 0.1, round(seconds * SAMPLE_RATE))
            clip = noise.clip(-1, 1).astype(np.float32)
            took: dict[bool, list[float]] = {False: [], True: []}
            for _ in range(args.rounds):
                for comes in took:
                    call = Call(env, clip, telephone if comes else None)
                    telephone.play(call)
                    wait = telephone.wait
                    took[comes].append(wait.seconds if comes and wait else call.seconds)
            whole, parts = (1000 * statistics.median(took[way]) for way in (False, True))
            assert wait is not None
            print(f"| {seconds:g} | {whole:.0f} | {parts:.0f} | {1 - parts / whole:.0%} |"
                  f" {wait.sound - wait.ahead} of {wait.sound} |", flush=True)
    env.close()


if __name__ == "__main__":
    main()
