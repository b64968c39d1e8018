"""The warm start alone: imitation of the clerk that errs, then an evaluation.

    python -m tarl_jax.main --config=configs/sft.py

COST
"""

from tarl_jax.presets import sized


def get_config(size: str = ""):
    config = sized(size)
    config.name = "sft"
    config.rl.steps = 0
    return config
