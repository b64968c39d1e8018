"""The main job: trains an agent and prints what training changed.

    python -m tarl_jax.main --config=configs/grpo_tarl.py [--workdir=DIR] [--config.KEY=VALUE ...]

A --workdir that holds an earlier run continues it. Any field of the config can be set, e.g.
--config.rl.learning_rate=3e-5; `--config=FILE:tiny` takes the smallest size. A config file may
bring parts of its own (docs/extending.md).
"""

from __future__ import annotations

from typing import Any

from tarl_jax.config import RunConfig
from tarl_jax.parallel.process import restart_with_tuned_malloc


def main() -> None:
    from tarl_jax.runs.command import run_with_config

    run_with_config(__doc__, _train)


def _train(config: RunConfig, parts: Any) -> None:
    from tarl_jax.training.train import run_and_report

    run_and_report(config, parts)


if __name__ == "__main__":
    restart_with_tuned_malloc("tarl_jax.main")
    main()
