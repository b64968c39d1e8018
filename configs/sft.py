"""The warm start alone: imitation of the erring clerk, then an evaluation."""

from tarl_jax.presets import sized


def get_config(size: str = ""):
    config = sized(size)
    config.name = "sft"
    config.rl.steps = 0
    return config
