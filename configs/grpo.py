"""GRPO with the terminal reward alone: the verifier's verdict, no judge.

    python -m tarl_jax.main --config=configs/grpo.py

15 to 22 minutes on two busy CPU cores with the warm start, which is cached. Seen on
256 held-out tasks x 4 trials, mean of three seeds at commit f4eb1a1: pass^1 0.414 -> 0.585,
pass^4 0.125 -> 0.376, clean pass 0.290 -> 0.335 (experiments/first_light/).
"""

from tarl_jax.presets import sized


def get_config(size: str = ""):
    config = sized(size)
    config.name = "grpo"
    config.reward.placement = "terminal"
    return config
