"""The main job: trains an agent and prints what training changed.

    python -m tarl_jax.main --config=configs/grpo_tarl.py [--workdir=RUN] [--config.KEY=VALUE ...]
    python -m tarl_jax.main RUN [--config.rl.steps=200]

The second continues a run that was stopped, or has ended, e.g. for more steps. With --dry_run all
is checked, and what the run would take is said; nothing is written. A config file may bring parts
of its own (docs/extending.md).
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from typing import Any

from tarl_jax.config import RunConfig
from tarl_jax.parallel.process import restart_with_tuned_malloc, run_module


def main() -> None:
    from tarl_jax.runs.command import run_with_config

    run_with_config(__doc__ or "", _train)


_COMMANDS = {"train": "main", "evaluate": "evaluate", "view": "view", "chat": "chat",
             "serve": "serve", "export": "export", "plan": "plan"}
SUBCOMMANDS = {name: of for name, of in _COMMANDS.items()
               if importlib.util.find_spec(f"tarl_jax.{of}")}


def tarl() -> None:
    """The command `tarl NAME …`, which is `python -m tarl_jax.MODULE …`."""
    name, arguments = (sys.argv[1] if len(sys.argv) > 1 else "--help"), sys.argv[2:]
    if name in ("-h", "--help"):
        print("usage: tarl COMMAND …    (tarl COMMAND --help says more)\n")
        print("\n".join(f"  {name:9} python -m tarl_jax.{of}" for name, of in SUBCOMMANDS.items()))
        return
    if name not in SUBCOMMANDS:
        print(f"error: unknown command {name!r}: choose one of {', '.join(SUBCOMMANDS)}",
              file=sys.stderr)
        sys.exit(2)
    run_module(f"tarl_jax.{SUBCOMMANDS[name]}", arguments)


def _train(config: RunConfig, parts: Any, given: argparse.Namespace) -> None:
    if given.dry_run:
        from tarl_jax.training.dry_run import show

        return show(config, parts)
    from tarl_jax.training.train import train

    train(config, parts, table=True)


if __name__ == "__main__":
    restart_with_tuned_malloc("tarl_jax.main")
    main()
