"""TARL as published (arXiv 2509.14480): one scalar per episode, divided by the group's spread.

    python -m tarl_jax.main --config=configs/tarl_published.py

10 for the verdict, the +1s of the turns taken as their mean times 5, −5 for a major deviation;
GRPO's group normalisation. Where the sources leave a reading open, docs/credit.md says which this
is.
"""

from tarl_jax.config.presets import sized


def get_config(size: str = ""):
    config = sized(size)
    config.name = "tarl_published"
    config.reward.placement = "trajectory"
    config.reward.denominator = "taken"
    config.rl.normalise = "group"
    return config
