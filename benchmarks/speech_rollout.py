"""What users' speech costs rollouts: synthesis and features, while the device decodes.

    python benchmarks/speech_rollout.py --run=RUN [--tasks 16] [--rounds 3] [--share 1.0]

RUN is a finished run of configs/omni_tarl.py. Its newest policy plays the same training episodes
(groups as in a step) in turns:

  synthesised   the cache is empty: every clip is made while others decode, then its features
  from disk     the clips are in the cache of an earlier run
  given         clips and features are in memory: what is left is the policy's own work, encoder
                included

The cost of speech is the share of a way's wall time that `given` does not have; users who write,
last, say what speech costs in all. Then the bytes of a trajectory on disk.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
from finished import config_of, policy_of

from tarl_jax.config import RunConfig
from tarl_jax.models.audio_inputs import pieces_of
from tarl_jax.models.decoder import Params
from tarl_jax.parallel.process import MALLOC
from tarl_jax.rollout import hearing
from tarl_jax.rollout.engine import Engine
from tarl_jax.rollout.environment import Environment
from tarl_jax.runs.metrics import CLIP_DIR, write_trajectories
from tarl_jax.speech.service import Speech
from tarl_jax.speech.synthesis import SAMPLE_RATE, Voice
from tarl_jax.types import Trajectory


class Remembered:
    """Stands in for `Speech`: says what was said before, at once."""

    def __init__(self, speech: Speech):
        self._speech = speech
        self._said: dict[str, Future[np.ndarray]] = {}

    def submit(self, *what: Any) -> Future[np.ndarray]:
        key = repr(what)
        if key not in self._said:
            self._said[key] = self._speech.submit(*what)
        return self._said[key]


def remembering(function: Callable[..., Any]) -> Callable[..., Any]:
    known: dict[bytes, Any] = {}

    def call(clip: np.ndarray, *more: Any) -> Any:
        key = clip.tobytes()
        if key not in known:
            known[key] = function(clip, *more)
        return known[key]

    return call


def play(
    args: argparse.Namespace, config: RunConfig, env: Environment, params: Params, engine: Engine
) -> tuple[float, list[Trajectory]]:
    """(seconds, trajectories) of the groups."""
    episodes = [
        env.episode(task, "benchmark", 0, trial)
        for task in env.train_tasks[: args.tasks] for trial in range(config.rollout.group_size)
    ]
    begun = time.perf_counter()
    engine.run(params, episodes, 1.0)
    return time.perf_counter() - begun, [episode.trajectory() for episode in episodes]


def synthesised(
    args: argparse.Namespace, config: RunConfig, env: Environment, params: Params, engine: Engine
) -> tuple[float, list[Trajectory]]:
    """`play` with an empty cache; the synthesiser's processes have started."""
    with tempfile.TemporaryDirectory() as empty:
        config = dataclasses.replace(
            config, speech=dataclasses.replace(config.speech, cache_dir=empty)
        )
        with Speech.from_config(config.speech) as speech:
            voice = Voice(config.speech.voices[0])
            words = [speech.submit(word, voice) for word in ("one", "two", "three", "four")]
            for word in words:
                word.result()
            return play(args, config, dataclasses.replace(env, speech=speech), params, engine)


def size(trajectories: list[Trajectory]) -> tuple[float, float]:
    """Bytes of a trajectory: (its line, its share of the clips)."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "step_000001.jsonl"
        write_trajectories(path, trajectories)
        clips = sum(f.stat().st_size for f in (Path(folder) / CLIP_DIR).glob("*"))
        return path.stat().st_size / len(trajectories), clips / len(trajectories)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, required=True, help="a run of configs/omni_tarl.py")
    parser.add_argument("--tasks", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--share", type=float, default=1.0, help="of the users who speak")
    args = parser.parse_args()
    config = config_of(args.run)
    env = Environment.from_config(config)
    params = policy_of(args.run, env)
    engine = env.engine()
    engine.programs.compile(params)
    spoken = env.speaking(args.share)
    remembered = Remembered(env.speech)
    given = remembering(pieces_of)

    with tempfile.TemporaryDirectory() as disk:
        kept = Speech.from_config(dataclasses.replace(config.speech, cache_dir=disk))
        ways = ("synthesised", "from disk", "given", "written")
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        differ = 0
        for turn in range(-1, args.rounds):  # the first fills what remembers
            trajectories: dict[str, list[Trajectory]] = {}
            for way in ways:
                hearing.pieces_of = given if way == "given" else pieces_of
                if way == "synthesised":
                    took, trajectories[way] = synthesised(args, config, spoken, params, engine)
                else:
                    speech = {"from disk": kept, "given": remembered}.get(way)
                    one = dataclasses.replace(spoken, speech=speech)
                    one = env.speaking(0.0) if way == "written" else one
                    took, trajectories[way] = play(args, config, one, params, engine)
                if turn >= 0:
                    seconds[way].append(took)
                    print(f"round {turn + 1}: {way:12} {took:6.2f} s", flush=True)
            played = zip(*(trajectories[way] for way in ways[:3]), strict=True)
            differ += sum(len({t.arrays()[0].tobytes() for t in three}) > 1 for three in played)
        kept.close()
    played = trajectories["synthesised"]
    failed = sum(t.stop_reason == "infrastructure_error" for t in played)
    if failed or differ > 0.05 * len(played) * (args.rounds + 1):
        raise SystemExit(f"the ways played other episodes: {differ} differ, {failed} failed")
    count = len(played)
    clips = [sound.clip for t in played for sound in t.sounds()]
    print(f"{count} episodes of {len(clips) / count:.1f} clips,"
          f" {sum(map(len, clips)) / SAMPLE_RATE / count:.1f} s of sound an episode")
    least = statistics.median(seconds["given"])
    for way, values in seconds.items():
        took = statistics.median(values)
        cost = "" if way in ("given", "written") else f"   speech: {1 - least / took:6.1%} of it"
        print(f"  {way:12} {took:6.2f} s{cost}")
    line, sound = size(played)
    print(f"a trajectory on disk: {line:,.0f} bytes of JSON, {sound:,.0f} of FLAC")
    env.close()


if __name__ == "__main__":
    if "TARL_KEEP_MALLOC" in os.environ or os.environ.keys() & MALLOC.keys():
        main()
    else:  # as training starts; see tarl_jax/parallel/process.py
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **MALLOC})
