"""Finished runs, opened again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tarl_jax.config import RunConfig, from_config_dict
from tarl_jax.models.decoder import Params
from tarl_jax.rollout.environment import Environment
from tarl_jax.runs.checkpoint import Checkpoints
from tarl_jax.training.policy import make_updater, newest, restore, starting_policy


def config_of(run: Path) -> RunConfig:
    """The config that the run directory records."""
    fields: dict[str, Any] = {}
    for name, value in json.loads((run / "config.json").read_text("utf-8")).items():
        *groups, last = name.split(".")
        inner = fields
        for group in groups:
            inner = inner.setdefault(group, {})
        inner[last] = value
    return from_config_dict(fields)


def policy_of(run: Path, env: Environment, step: int = -1) -> Params:
    """The policy of a checkpoint; -1: the newest, 0: the warm start, from its cache."""
    config = env.config
    updater = make_updater(config, env)
    if step == 0:
        return starting_policy(config, env, updater)
    checkpoints = Checkpoints(run, config.checkpoint)
    step = newest(checkpoints, run, step)
    params = restore(config, env, updater, checkpoints, step).policy
    checkpoints.close()
    return params
