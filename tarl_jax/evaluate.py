"""Evaluates a run on held-out tasks: pass^k with intervals, and how the policy behaves.

    python -m tarl_jax.evaluate --config=configs/grpo_tarl.py --workdir=runs/NAME

evaluates the newest checkpoint of a run (`--step` chooses another, `--step=0` the warm start).
"""

from __future__ import annotations

from tarl_jax.config import RunConfig
from tarl_jax.launch import restart_with_tuned_malloc


def main() -> None:
    from absl import flags

    from tarl_jax.cli import run_with_config

    chosen = flags.DEFINE_integer("step", -1, "The checkpoint's step; -1: the newest.")

    def job(config: RunConfig) -> None:
        from tarl_jax.evaluation import evaluate_run

        evaluate_run(config, chosen.value)

    run_with_config(__doc__, job)


if __name__ == "__main__":
    restart_with_tuned_malloc("tarl_jax.evaluate")
    main()
