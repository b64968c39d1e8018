"""GRPO with the terminal reward only."""

from tarl_jax.presets import sized


def get_config(size: str = ""):
    config = sized(size)
    config.name = "grpo"
    config.reward.placement = "terminal"
    return config
