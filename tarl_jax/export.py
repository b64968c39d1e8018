"""Writes a run's policy as a checkpoint that `transformers` loads.

    python -m tarl_jax.export --config=configs/grpo_tarl.py --workdir=runs/NAME --out=FOLDER

exports the newest checkpoint of a run (`--step` chooses another): safetensors, config.json, and the
tokenizer's files where the run started from a pretrained checkpoint. Adapters are merged; with
`--adapters` they are written alone, as PEFT loads them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tarl_jax.config import ConfigError, RunConfig
from tarl_jax.parallel.process import restart_with_tuned_malloc


def main() -> None:
    from absl import flags

    from tarl_jax.runs.command import run_with_config

    out = flags.DEFINE_string("out", None, "The folder to write; it must not exist or be empty.")
    step = flags.DEFINE_integer("step", -1, "The checkpoint's step; -1: the newest.")
    adapters = flags.DEFINE_bool("adapters", False, "Write the adapters alone, for PEFT.")

    def job(config: RunConfig, parts: Any) -> None:
        from tarl_jax.training.parts import checked
        from tarl_jax.training.policy import export

        if not out.value:
            raise ConfigError("--out is required: the folder to write")
        own = checked(parts, config)
        done = export(config, Path(out.value), step.value, own, adapters.value)
        print(f"step {done} of {config.workdir}: {out.value}")

    run_with_config(__doc__, job)


if __name__ == "__main__":
    restart_with_tuned_malloc("tarl_jax.export")
    main()
