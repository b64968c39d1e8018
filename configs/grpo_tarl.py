"""GRPO with TARL's reward: the verifier's verdict and the judge's score of every turn.

    python -m tarl_jax.main --config=configs/grpo_tarl.py

COST
"""

from tarl_jax.presets import sized


def get_config(size: str = ""):
    config = sized(size)
    config.name = "grpo_tarl"
    return config
