"""Writes a run's policy as a checkpoint that `transformers` loads.

    python -m tarl_jax.export RUN --out=FOLDER [--step=N]

exports the newest checkpoint of the run, or that of a step that is kept: safetensors, config.json,
and the tokenizer's files where the run started from a pretrained checkpoint. Adapters are merged;
with `--adapters` they are written alone, as PEFT loads them.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from tarl_jax.config import ConfigError, RunConfig
from tarl_jax.parallel.process import restart_with_tuned_malloc


def main() -> None:
    from tarl_jax.runs.command import run_with_config

    run_with_config(__doc__ or "", _export, _options)


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", metavar="FOLDER",
                        help="the folder to write; it must not exist or be empty")
    parser.add_argument("--step", type=int, default=-1, metavar="N",
                        help="the checkpoint's step; -1 (the default): the newest")
    parser.add_argument("--adapters", action="store_true",
                        help="write the adapters alone, for PEFT")


def _export(config: RunConfig, parts: Any, given: argparse.Namespace) -> None:
    if not given.out:
        raise ConfigError("--out is required: the folder to write")
    from tarl_jax.config.checks import NO_BUCKETS
    from tarl_jax.models.peft_files import require_adapters
    from tarl_jax.models.tensor_files import require_empty
    from tarl_jax.training.parts import checked
    from tarl_jax.training.policy import export

    if "://" in given.out:
        raise ConfigError(f"--out={given.out}: {NO_BUCKETS}")
    folder, own = Path(given.out).expanduser(), checked(parts, config)
    require_empty(folder)
    if given.adapters:
        require_adapters(config.model)
    if given.dry_run:
        from tarl_jax.training.dry_run import show

        return show(config, own, given.step)
    done = export(config, folder, given.step, own, given.adapters)
    print(f"step {done} of {config.workdir}: {given.out}")


if __name__ == "__main__":
    restart_with_tuned_malloc("tarl_jax.export")
    main()
