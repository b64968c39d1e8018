"""Evaluates a run on held-out tasks: pass^k with intervals, and how the policy behaves.

    python -m tarl_jax.evaluate --config=configs/grpo_tarl.py --workdir=runs/NAME

evaluates the newest checkpoint of a run (`--step` chooses another that is kept).

    python -m tarl_jax.evaluate --config=configs/omni_tarl.py --workdir=runs/NAME \\
      --user=human --audio=file.wav

plays one turn from a file to a policy that hears, and prints what it does about it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tarl_jax.config import ConfigError, RunConfig
from tarl_jax.parallel.process import restart_with_tuned_malloc


def main() -> None:
    from absl import flags

    from tarl_jax.runs.command import run_with_config

    chosen = flags.DEFINE_integer("step", -1, "The checkpoint's step; -1: the newest.")

    user = flags.DEFINE_enum("user", "tasks", ["tasks", "human"], "Who speaks to the policy.")
    audio = flags.DEFINE_string("audio", None, "What a human says: a sound file.")

    def job(config: RunConfig, parts: Any) -> None:
        if (user.value == "human") != bool(audio.value):
            raise ConfigError("--user=human and --audio=FILE belong together: give both or none")
        from tarl_jax.training.parts import checked

        own = checked(parts, config)
        if audio.value:
            from tarl_jax.training.recorded_user import answer

            answer(config, Path(audio.value), chosen.value, own)
            return
        from tarl_jax.training.evaluation import evaluate_run

        evaluate_run(config, chosen.value, own)

    run_with_config(__doc__, job)


if __name__ == "__main__":
    restart_with_tuned_malloc("tarl_jax.evaluate")
    main()
