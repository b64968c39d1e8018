"""A copy of the metrics at Weights & Biases, where `log.wandb` names a project there.

Its own settings are its environment variables: WANDB_API_KEY (never part of a config),
WANDB_MODE=offline (files in the run directory, sent later by `wandb sync`), WANDB_ENTITY.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tarl_jax.config import ConfigError
from tarl_jax.parallel.files import replace


def check(project: str) -> None:
    """Raises ConfigError where a copy is wanted and cannot be made: no package, or no key."""
    if not project:
        return
    try:
        import wandb
    except ModuleNotFoundError as error:
        raise ConfigError(f"config.log.wandb = {project!r}: needs pip install -e '.[wandb]'; or"
                          " leave it empty") from error
    offline = os.environ.get("WANDB_MODE", "online") != "online"
    if not offline and not (os.environ.get("WANDB_API_KEY") or wandb.api.api_key):
        raise ConfigError(f"config.log.wandb = {project!r}: no key for Weights & Biases: set"
                          " WANDB_API_KEY or run `wandb login`; or WANDB_MODE=offline")


class WandbCopy:
    """One run there for one run directory: a run that continues goes on under the same id.

    config: every field of the run's config by its key. Raises ConfigError where it cannot begin.
    """

    def __init__(self, run_dir: Path, project: str, config: Mapping[str, Any]):
        import wandb

        identity = run_dir / "wandb_id"
        if not identity.is_file():
            replace(identity, uuid.uuid4().hex[:12])
        try:
            self._run = wandb.init(
                project=project, name=run_dir.resolve().name, id=identity.read_text().strip(),
                resume="allow", dir=str(run_dir), config=dict(config),
                settings=wandb.Settings(silent=True, console="off"),
            )
        except wandb.Error as error:
            raise ConfigError(f"config.log.wandb = {project!r}: {error}; mend that, set"
                              " WANDB_MODE=offline, or leave it empty") from error
        # By our steps, which a run that continues may write again, and not by theirs.
        self._run.define_metric("*", step_metric="step")

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Adds the numbers of a step."""
        self._run.log({"step": step, **values})

    def close(self) -> None:
        """Waits until all is written, or sent."""
        self._run.finish()
