"""How well a policy's audio encoder transcribes: numbers, names, addresses, words alone, and turns.

    python benchmarks/transcription.py --run=RUN [--step 0] [--dialogues 80]

RUN is a run of configs/omni_tarl.py; step 0 is its warm start. The clips are of other shops than
the warm start's: other users and orders, made of the same names, zip codes, numbers and words, in
the run's own acoustics. Each of the encoder's outputs spells the nearest entry of the decoder's
table, as in the warm start's loss (`tarl_jax/warm_start/transcription.py`): the decoder's layers
have no part in it. Prints the share that comes out right, by kind: of what is said alone and of
whole turns to the token, of what turns say of orders and users to the letter; and some of what does
not.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from finished import config_of, policy_of

from tarl_jax.models.audio_encoder import HOP
from tarl_jax.rollout.environment import Environment
from tarl_jax.speech.acoustics import needs_babble
from tarl_jax.speech.service import Speech
from tarl_jax.text.tokenizer import AUDIO
from tarl_jax.warm_start import transcription
from tarl_jax.warm_start.clips import batch_of, drawn_acoustics
from tarl_jax.warm_start.demonstrations import Transcript, demonstrate_spoken

OTHER_SEED = 5
ROWS = 16  # clips at a time
IN_TURNS = {
    "order number in a turn": r"#W\d+",
    "email in a turn": r"[\w.]+@mail\.com",
    "name in a turn": r"[A-Z]\w+ [A-Z]\w+(?=, )",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, required=True, help="a run of configs/omni_tarl.py")
    parser.add_argument("--step", type=int, default=-1, help="checkpoint; 0: the warm start")
    parser.add_argument("--dialogues", type=int, default=80)
    args = parser.parse_args()
    config = config_of(args.run)
    env = Environment.from_config(config)
    params = policy_of(args.run, env, args.step)
    other = dataclasses.replace(
        config, shop=dataclasses.replace(config.shop, seed=OTHER_SEED),
        warm_start=dataclasses.replace(config.warm_start, seed=OTHER_SEED),
    )
    with Speech.from_config(dataclasses.replace(config.speech, cache_dir="")) as speech:
        demonstrations, alone = demonstrate_spoken(
            other, env, config.warm_start.clerk, args.dialogues, speech
        )
        babblers = speech.babblers() if needs_babble(config.speech) else ()
    acoustics = drawn_acoustics(config.speech, babblers)
    turns = [transcript for one in demonstrations for transcript in one.said]
    (placeholder,) = env.tokenizer.encode_markup(AUDIO)
    spell = jax.jit(functools.partial(transcription.spelling, model=config.model))
    right: dict[str, list[bool]] = {}
    wrong: list[tuple[str, str]] = []
    clips = [(kind(env.tokenizer.decode(clip.text)), clip) for clip in alone]
    clips += [("whole turn", clip) for clip in turns]
    audio = config.model.audio
    longest = max(len(clip.text) for _, clip in clips)
    for draw, (count, batch) in enumerate(batches(clips, 2 * audio.n_window * HOP)):
        rows = [(clip.clip, clip.text) for _, clip in batch]
        arrays = batch_of(rows, count, longest, audio, acoustics, draw)
        lengths = (1 - arrays.silent).sum(1).astype(int)
        found = np.asarray(spell(params, batch=arrays))
        for (name, clip), scores, tokens in zip(batch, found, lengths, strict=True):
            said = transcription.transcribed(scores, tokens, placeholder)
            right.setdefault(name, []).append(said == clip.text.tolist())
            text, words = map(env.tokenizer.decode, (clip.text, said))
            if words != text:
                wrong.append((text, words))
            if name == "whole turn":
                for part, pattern in IN_TURNS.items():
                    for value in re.findall(pattern, text):
                        there = re.search(rf"{re.escape(value)}\b", words) is not None
                        right.setdefault(part, []).append(there)
    env.close()
    for name, values in sorted(right.items()):
        print(f"{name:22} {np.mean(values):.2f} of {len(values)}")
    for text, said in wrong[:: max(len(wrong) // 8, 1)]:
        print(f"  {text!r} was transcribed as {said!r}")


def batches(
    clips: list[tuple[str, Transcript]], size: int
) -> Iterator[tuple[int, list[tuple[str, Transcript]]]]:
    """How many pieces of so many samples, and clips of as many, so that few programs are made."""
    by_count: dict[int, list[tuple[str, Transcript]]] = {}
    for name, clip in clips:
        by_count.setdefault(-(-len(clip.clip) // size), []).append((name, clip))
    for count, same in by_count.items():
        full = len(same) - len(same) % ROWS
        yield from ((count, same[i : i + ROWS]) for i in range(0, full, ROWS))
        yield from ((count, [one]) for one in same[full:])


def kind(text: str) -> str:
    if "#" in text:
        return "order number"
    if "@" in text:
        return "email"
    return "name and zip" if re.search(r"\d{3}", text) else "word"


if __name__ == "__main__":
    main()
