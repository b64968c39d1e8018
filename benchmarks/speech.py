"""Speed and size of users' speech: synthesis in processes, the cache, acoustics.

    python benchmarks/speech.py [--clips 100] [--workers 1 2]
    python benchmarks/speech.py --clips 20 --workers 1 --voices piper:en_US-joe-medium

Texts are openings of the embedded shop's held-out users, voices and acoustics those of the default
config, or voices that are named. Wall time depends on what else the machine does; CPU time, of all
processes, less.
"""

from __future__ import annotations

import argparse
import dataclasses
import random
import resource
import tempfile
import time
from pathlib import Path

from tarl_jax.config import RunConfig
from tarl_jax.config.speech import SpeechConfig, engine_of, parse_chain
from tarl_jax.sandbox import shop
from tarl_jax.sandbox.retail import retail_domain
from tarl_jax.sandbox.tasks import make_tasks
from tarl_jax.sandbox.user import ScriptedUser
from tarl_jax.speech.service import Speech
from tarl_jax.speech.speakable import speakable
from tarl_jax.speech.synthesis import SAMPLE_RATE, Voice, draw_voice

CHAINS = ("clean", "telephone", "white:15", "reverb:0.4", "reverb:0.4+babble:15+telephone")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=100)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--voices", nargs="+", default=SpeechConfig().voices)
    args = parser.parse_args()
    texts, config = openings(args.clips), SpeechConfig(voices=tuple(args.voices))
    engines = ", ".join(sorted({engine_of(name, config.engine)[0] for name in args.voices}))
    voices = [draw_voice(config, random.Random(i)) for i in range(len(texts))]
    print(f"{'':36} {'clips/s':>8} {'x real time':>12} {'CPU ms/clip':>12}")
    for workers in args.workers:
        with tempfile.TemporaryDirectory() as folder:
            config = dataclasses.replace(config, workers=workers, cache_dir=folder)
            seconds = row(f"{engines}, {workers} processes", config, texts, voices)
            row(f"from the cache, {workers} threads", config, texts, voices)
            files = [path.stat().st_size for path in Path(folder).rglob("*.flac")]
    with tempfile.TemporaryDirectory() as folder:
        config = dataclasses.replace(config, workers=1, cache_dir=folder)
        row("", config, texts, voices, show=False)
        for chain in CHAINS:
            row(f"cache, then {chain}", config, texts, voices, chain)
    size = sum(files) / len(files)
    print(f"{seconds / len(texts):.2f} s a clip, {size / 1000:.0f} kB in FLAC,"
          f" {size / (2 * SAMPLE_RATE * seconds / len(texts)):.0%} of its samples")


def openings(count: int) -> list[str]:
    """What so many users say first, as it is spoken; no two alike."""
    config = RunConfig()
    domain = retail_domain(shop.make_shop(config.shop), "")
    tasks = make_tasks(domain, config.shop, config.tasks, "held_out")
    texts = {speakable(ScriptedUser(t, s).opening()): None for s in range(9) for t in tasks}
    return list(texts)[:count]


def row(
    name: str, config: SpeechConfig, texts: list[str], voices: list[Voice], chain: str = "clean",
    show: bool = True,
) -> float:
    """Prints one line; returns the seconds of speech."""
    effects = parse_chain(chain)
    cpu, begun = cpu_seconds(), time.perf_counter()
    with Speech.from_config(config) as speech:
        futures = [
            speech.submit(text, voice, effects, seed)
            for seed, (text, voice) in enumerate(zip(texts, voices, strict=True))
        ]
        said = sum(len(future.result()) for future in futures) / SAMPLE_RATE
        wall = time.perf_counter() - begun
    cpu = cpu_seconds() - cpu  # of children too, which have ended
    if show:
        n = len(texts)
        print(f"{name:36} {n / wall:8.1f} {said / wall:12.0f} {1000 * cpu / n:12.1f}", flush=True)
    return said


def cpu_seconds() -> float:
    who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(use.ru_utime + use.ru_stime for use in map(resource.getrusage, who))


if __name__ == "__main__":
    main()
