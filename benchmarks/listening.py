"""How much of what users say a policy's audio encoder has wrong, by voice and condition.

    python benchmarks/listening.py --run=RUN [--step 0] [--turns 60]
    python benchmarks/listening.py --run=RUN --voices en-us piper:en_US-joe-medium

RUN is a run of configs/omni_noisy.py or configs/omni_tarl.py; step 0 is its warm start. The voices
are the run's own, those held out marked, or those that are named; the turns are what users of
another shop open with. Prints the word error rate of each voice in each condition, as
`tarl_jax/training/heard.py` counts it, with its 95% interval by bootstrap over turns.
`python -m tarl_jax.evaluate RUN --config.eval.spoken="('clean@VOICE','telephone@VOICE')"` plays
whole tasks instead.
"""

from __future__ import annotations

import argparse
import dataclasses
from concurrent.futures import Future
from pathlib import Path

import numpy as np
from finished import config_of, policy_of

from tarl_jax.config import RunConfig
from tarl_jax.config.speech import condition_of, parse_chain
from tarl_jax.models.params import Params
from tarl_jax.rollout.environment import Environment
from tarl_jax.sandbox.published import embedded_domain
from tarl_jax.sandbox.tasks import make_tasks
from tarl_jax.sandbox.users import scripted_user
from tarl_jax.speech.service import Speech
from tarl_jax.speech.speakable import speakable
from tarl_jax.speech.synthesis import Voice
from tarl_jax.training.heard import edits, transcribe, words_of
from tarl_jax.warm_start.demonstrations import desk_name

OTHER_SEED = 5
CONDITIONS = ("clean", "white:20", "white:10", "babble:15", "reverb:0.4", "telephone",
              "telephone+loss:5", "hesitant:0.1")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, required=True, help="a run whose policy hears")
    parser.add_argument("--step", type=int, default=-1, help="checkpoint; 0: the warm start")
    parser.add_argument("--turns", type=int, default=60)
    parser.add_argument("--voices", nargs="+", help="default: the run's, those held out too")
    parser.add_argument("--conditions", nargs="+", default=CONDITIONS)
    args = parser.parse_args()
    config = config_of(args.run)
    env = Environment.from_config(config)
    params = policy_of(args.run, env, args.step)
    voices = tuple(args.voices or config.speech.voices)
    speaking = dataclasses.replace(config.speech, voices=voices, held_out=())
    chains = {one: parse_chain(condition_of(one, speaking)[0]) for one in args.conditions}
    texts = turns(config, args.turns)
    speed = sum(config.speech.speed) / 2
    print(f"| voice | {' | '.join(chains)} |\n{'|---' * (len(chains) + 1)}|")
    with Speech.from_config(speaking) as speech:
        for name in voices:
            cells = []
            for effects in chains.values():
                clips = [
                    speech.submit(speakable(text), Voice(name, round(speed, 2)), effects, seed)
                    for seed, text in enumerate(texts)
                ]
                cells.append(error_rate(params, env, texts, clips))
            mark = " (held out)" if name in config.speech.held_out_voices else ""
            print(f"| {name}{mark} | {' | '.join(cells)} |", flush=True)
    env.close()


def turns(config: RunConfig, count: int) -> list[str]:
    """What users of another shop say first; no two alike."""
    shop = dataclasses.replace(config.shop, seed=OTHER_SEED)
    domain = embedded_domain(desk_name(config), shop, 0)
    tasks = make_tasks(domain, shop, dataclasses.replace(config.tasks, seed=OTHER_SEED), "held_out")
    texts = {scripted_user(domain, t, s).opening(): None for s in range(9) for t in tasks}
    return list(texts)[:count]


def error_rate(
    params: Params, env: Environment, texts: list[str], clips: list[Future[np.ndarray]]
) -> str:
    """Edits over words, and the ends of its interval."""
    said = [words_of(text) for text in texts]
    heard = [words_of(transcribe(params, env, clip.result())) for clip in clips]
    wrong = np.array([edits(a, b) for a, b in zip(said, heard, strict=True)])
    words = np.array([len(a) for a in said])
    picks = np.random.default_rng(0).integers(0, len(words), (2000, len(words)))
    low, high = np.percentile(wrong[picks].sum(1) / words[picks].sum(1), (2.5, 97.5))
    return f"{wrong.sum() / words.sum():.2f} ({low:.2f} to {high:.2f})"


if __name__ == "__main__":
    main()
