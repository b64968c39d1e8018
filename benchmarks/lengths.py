"""The share of published tasks that episodes of a length have no room for.

    python benchmarks/lengths.py --tokenizer FOLDER [--data FOLDER] [--limits 8192 16384 32768]

--tokenizer has a checkpoint's `tokenizer.json` and `tokenizer_config.json`; --data tau-bench's
`retail/` and `airline/`. A dialogue is the shortest one in which nothing goes wrong: the gold
calls, a sentence for each question, and the records that the tools answer with. It fits where every
turn begins with room for the longest one, as a run has it. With thoughts each turn has so many
tokens more, and all of them stay in the context (`rollout.reasoning=kept`); "off" is
`rollout.thinking=off`. Prints Markdown.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import numpy as np

from tarl_jax.config import RunConfig, from_config_dict
from tarl_jax.config.presets import sized
from tarl_jax.rollout.environment import Environment
from tarl_jax.rollout.lengths import THOUGHT, measured
from tarl_jax.sandbox.dialogue import User
from tarl_jax.text.chat import Chat
from tarl_jax.types import Task


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokenizer", required=True, metavar="FOLDER")
    parser.add_argument("--data", type=Path, default=Path("../shared/tau_bench"))
    parser.add_argument("--limits", type=int, nargs="+", default=[8192, 16_384, 32_768])
    args = parser.parse_args()
    heads = [f"{limit:,}, {how}" for limit in args.limits
             for how in ("thinking off", f"thoughts of {THOUGHT}")]
    print("| tasks |", " | ".join(heads), "|")
    print("|" + "---|" * (1 + len(heads)))
    for name, (env, tasks) in published(args.tokenizer, args.data).items():
        print(row(name, env, tasks, args.limits), flush=True)


def published(tokenizer: str, data: Path) -> dict[str, tuple[Environment, list[Task]]]:
    """Each split of each domain, and where it is played."""
    config = with_thoughts(from_config_dict(sized("qwen3_8b")), "on")
    config = dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, pretrained=tokenizer),
        sandbox=dataclasses.replace(config.sandbox, data=str(data / "retail")),
        eval=dataclasses.replace(config.eval, domain="airline", data=str(data / "airline")),
    )

    def nobody(task: Task, seed: int) -> User:
        raise AssertionError("the dialogues are composed")

    retail = Environment.from_config(config, own_user=nobody)
    airline = retail.evaluation()
    return {
        "retail, train": (retail, retail.train_tasks),
        "retail, held out": (retail, retail.held_out_tasks),
        "airline, held out": (airline, airline.held_out_tasks),
    }


def with_thoughts(config: RunConfig, thinking: str, limit: int = 32_768) -> RunConfig:
    rollout = dataclasses.replace(config.rollout, thinking=thinking, max_episode_tokens=limit)
    return dataclasses.replace(config, rollout=rollout)


def row(name: str, env: Environment, tasks: list[Task], limits: list[int]) -> str:
    cuts = []
    for limit in limits:
        for thinking in ("off", "on"):
            there = dataclasses.replace(
                env, config=with_thoughts(env.config, thinking, limit),
                chat=Chat(env.tokenizer, env.config.rollout.several_calls, thinking == "on"),
            )
            found = measured(there, tasks, len(tasks))
            fits = found.fits if found.fits_thinking is None else found.fits_thinking
            cuts.append(f"{np.mean(~fits):.1%}")
    return f"| {name} ({len(tasks)}) | {' | '.join(cuts)} |"


if __name__ == "__main__":
    main()
