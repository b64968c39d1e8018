"""Turns that nobody should write, played, judged, written to disk and read back, per domain.

    python benchmarks/fuzz.py --turns 100000
    python benchmarks/fuzz.py --data ../tau2-bench/data/tau2/domains --domains telecom

A turn is a call of one of the domain's tools with arguments from its database or of any JSON at
all, then now and then cut, doubled, nested, wrapped in thoughts or markup; or text with halves of
characters' bytes, control signs and tags; or ids drawn from the whole vocabulary. With --data users
say such text too. Whatever is raised on the way is a fault: it is printed with the seed that makes
it again, and the exit is 1.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import json
import random
import re
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

from tarl_jax.config import from_config_dict
from tarl_jax.config.presets import sized
from tarl_jax.judge.rules import judge
from tarl_jax.judge.user_rules import faults as faults_of_user
from tarl_jax.rollout.environment import Environment
from tarl_jax.rollout.workers import Turn
from tarl_jax.runs.metrics import read_trajectories, write_trajectories
from tarl_jax.sandbox.user import Reply
from tarl_jax.view.records import open_source

DOMAINS = ("retail", "airline", "telecom")
SCRAPS = (
    "</think>", "<think>", "<think>\r\n", "<tool_call>", "</tool_call>", "<|im_end|>", "\x00",
    "\x7f", "\u2028", "\u202e", "\ufeff", "\U0001f600", "é", "###STOP###", "###TRANSFER###", "NaN",
    "-Infinity", "1e999", "\\ud83d", "\\udc00", "{", "}", "[", "]",
    '"', "\\", ",", "\n", "\r", "\t", " " * 50,
)
# What the tokenizer has symbols for; all else is text.
MARKUP = re.compile(r"(<tool_call>\n|\n</tool_call>|<think>\n|\n</think>\n\n|<\|im_end\|>)")


def anything(rng: random.Random, known: list[str], depth: int = 0) -> Any:
    """Any JSON value."""
    kind = rng.randrange(10 if depth < 3 else 7)
    if kind < 3:
        return rng.choice(known)
    if kind == 3:
        return rng.choice((None, True, False, 0, -1, 2**63, -(10**40), 0.1, 1e308, float("nan")))
    if kind < 7:
        return rng.choice(SCRAPS) * rng.randrange(1, 4)
    if kind == 7:
        return {rng.choice(known): anything(rng, known, depth + 1) for _ in range(rng.randrange(4))}
    return [anything(rng, known, depth + 1) for _ in range(rng.randrange(4))]


class Writer:
    """Writes turns for one environment."""

    def __init__(self, env: Environment):
        self.env = env
        self.tools = {name: list(tool.schema["function"]["parameters"].get("properties", {}))
                      for name, tool in env.domain.tools.items()}
        words: list[str] = []
        for table in env.domain.database.values():
            for key, record in list(table.items())[:20] if isinstance(table, dict) else ():
                words += [str(key), *_strings(record)]
        self.known = sorted(set(words))[:2000] or ["x"]

    def ids(self, rng: random.Random) -> list[int]:
        tokenizer = self.env.tokenizer
        kind = rng.random()
        if kind < 0.1:
            ids = [rng.randrange(tokenizer.vocab_size) for _ in range(rng.randrange(1, 40))]
        else:
            text = self.call(rng) if kind < 0.85 else "".join(
                rng.choice((*SCRAPS, *rng.sample(self.known, 1))) for _ in range(rng.randrange(12)))
            ids = [id_ for piece in MARKUP.split(text) if piece for id_ in (
                tokenizer.encode_markup(piece) if MARKUP.fullmatch(piece)
                else tokenizer.encode(piece))]
            while ids and rng.random() < 0.15:  # halves of characters and of markup
                ids[rng.randrange(len(ids))] = rng.randrange(tokenizer.vocab_size)
        return [*ids, self.env.chat.stop_id] if rng.random() < 0.95 or not ids else ids

    def call(self, rng: random.Random) -> str:
        name = rng.choice(list(self.tools))
        arguments = {p: anything(rng, self.known) for p in self.tools[name] if rng.random() < 0.9}
        if rng.random() < 0.1:
            name = anything(rng, self.known)
        if rng.random() < 0.1:
            arguments = anything(rng, self.known)
        if rng.random() < 0.02:
            depth = rng.choice((20, 200, 3000))
            body = f'{{"name": "x", "arguments": {"[" * depth}{"]" * depth}}}'
        else:
            call = {"name": name, "arguments": arguments}
            body = json.dumps(call, ensure_ascii=rng.random() < 0.5)
        if rng.random() < 0.2:
            place = rng.randrange(len(body) + 1)
            body = body[:place] + rng.choice((*SCRAPS, "")) + body[place + rng.randrange(3):]
        text = f"<tool_call>\n{body}\n</tool_call>"
        if rng.random() < 0.2:
            text = f"<think>\n{rng.choice(self.known)}\n</think>\n\n{text}"
        return text * 2 if rng.random() < 0.05 else text


class Talker:
    """A user that says anything, and so leaves at some time."""

    def __init__(self, seed: int):
        self.random = random.Random(seed)

    def opening(self) -> str:
        return "".join(self.random.choice((*SCRAPS, "hello ")) for _ in range(5))

    def reply(self, message: str) -> Reply:
        del message
        return Reply(self.opening(), {})


def _strings(record: Any) -> list[str]:
    if isinstance(record, dict):
        return [s for value in record.values() for s in _strings(value)]
    if isinstance(record, list):
        return [s for value in record for s in _strings(value)]
    return [record] if isinstance(record, str) else []


def play(
    env: Environment, writer: Writer, seed: str, path: Path, tally: collections.Counter[str]
) -> int:
    """One episode, from its start to the file `path` and back; returns its turns."""
    rng = random.Random(seed)
    task = rng.choice(env.train_tasks)
    episode = env.episode(task, seed)
    answer = episode.start()
    turns = 0
    while answer is not None and turns < 30:
        ids = writer.ids(rng)
        answer = episode.turn(Turn(ids, [0.0] * len(ids), [0.0] * len(ids)))
        turns += 1
    if answer is not None:
        episode.cut()
    trajectory = episode.trajectory()
    judged = judge(trajectory)
    trajectory.turn_scores = judged.scores if judged else None
    trajectory.user_faults = [str(fault) for fault in faults_of_user(trajectory)]
    write_trajectories(path, [trajectory])
    (again,) = read_trajectories(path)
    assert again.to_json_line() == trajectory.to_json_line()
    shown = open_source(str(path))
    assert len(shown.episodes("train", 0)) == 1
    assert shown.episode("train", 0, 0)["segments"]
    tally[trajectory.stop_reason] += 1
    for turn in trajectory.turns:
        tally["turns that call" if turn.calls else "turns that say" if turn.message else
              "turns refused"] += 1
    return turns


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=100_000, help="of each domain")
    parser.add_argument("--domains", nargs="+", choices=DOMAINS, default=list(DOMAINS))
    parser.add_argument("--data", type=Path, help="a folder of published domains, by their names")
    parser.add_argument("--tokenizer", default="", help="a checkpoint's folder; the embedded one")
    parser.add_argument("--seed", default="0")
    args = parser.parse_args()
    faults = 0
    for name in args.domains:
        config = sized("")
        config.sandbox.domain = name
        config.rollout.max_turns = 30
        config.rollout.max_episode_tokens = 1_000_000
        if args.data:
            config.sandbox.data = str(args.data / name)
        if name == "telecom":
            config.reward.update({"placement": "stage", "stage_judge": False})
        config = from_config_dict(config)
        model = dataclasses.replace(config.model, pretrained=args.tokenizer)
        env = Environment.from_config(
            dataclasses.replace(config, model=model),
            own_user=(lambda task, seed: Talker(seed)) if args.data else None,
        )
        writer, tally = Writer(env), collections.Counter()
        turns = number = 0
        begun = time.perf_counter()
        while turns < args.turns:
            seed = f"{args.seed}/{name}/{number}"
            number += 1
            with tempfile.TemporaryDirectory() as folder:
                try:
                    turns += play(env, writer, seed, Path(folder) / "episodes.jsonl", tally)
                except Exception:  # of any kind: that is what is looked for
                    faults += 1
                    turns += 1
                    print(f"FAULT at {seed}:\n{traceback.format_exc()[-1500:]}", flush=True)
            if faults >= 20:
                sys.exit("20 faults: stopped")
        seconds = time.perf_counter() - begun
        print(f"{name}: {turns:,} turns in {number:,} episodes, {seconds:.0f} s; {dict(tally)}")
    sys.exit(f"{faults} faults" if faults else 0)


if __name__ == "__main__":
    main()
