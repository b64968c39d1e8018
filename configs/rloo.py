"""RLOO (arXiv 2402.14740) on TARL's reward: the mean of a group's other episodes is the baseline.

    python -m tarl_jax.main --config=configs/rloo.py
"""

from tarl_jax.config.presets import sized


def get_config(size: str = ""):
    config = sized(size)
    config.name = "rloo"
    config.rl.advantage = "rloo"
    config.rl.normalise = "none"
    return config
