"""GRPO with the terminal reward alone: the verifier's verdict, no judge.

    python -m tarl_jax.main --config=configs/grpo.py
"""

from tarl_jax.config.presets import sized


def get_config(size: str = ""):
    config = sized(size)
    config.name = "grpo"
    config.reward.placement = "terminal"
    return config
