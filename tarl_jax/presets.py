"""Sizes that every config in `configs/` takes as its argument: `--config=configs/grpo.py:tiny`."""

from __future__ import annotations

import dataclasses
from typing import Any

from tarl_jax.config import ConfigError, RunConfig, to_config_dict


def sized(size: str) -> Any:
    """A ConfigDict of the embedded default (size "") or of "tiny" (seconds, learns nothing).

    Raises ConfigError for any other size.
    """
    config = RunConfig()
    if size == "tiny":
        config = _tiny(config)
    elif size:
        raise ConfigError(f"size {size!r}: choose 'tiny', or none for the embedded default")
    return to_config_dict(config)


def _tiny(config: RunConfig) -> RunConfig:
    """Every part of a run in under a minute; for tests and for a first look."""
    replace = dataclasses.replace
    return replace(
        config,
        model=replace(config.model, d_model=32, num_layers=2, num_heads=2, head_dim=16, d_ff=64),
        shop=replace(config.shop, num_users=40),
        tasks=replace(config.tasks, num_train=64, num_held_out=16),
        warm_start=replace(config.warm_start, episodes=64, branches=4, steps=12, batch_tokens=2048),
        rollout=replace(config.rollout, tasks_per_step=4, group_size=4, slots=16,
                        max_episode_tokens=384, max_turn_tokens=24, max_turns=8),
        rl=replace(config.rl, steps=3, minibatches=1, micro_batch_tokens=2048),
        eval=replace(config.eval, every=2, tasks=4, final_tasks=8, trials=4, bootstrap=200),
        checkpoint=replace(config.checkpoint, every=1),
        log=replace(config.log, trajectories=8),
    )
