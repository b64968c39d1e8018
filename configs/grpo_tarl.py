"""GRPO with TARL's turn-level reward."""

from tarl_jax.presets import sized


def get_config(size: str = ""):
    config = sized(size)
    config.name = "grpo_tarl"
    return config
