"""PPO with each turn's part of TARL's reward on the turn's last token.

    python -m tarl_jax.main --config=configs/ppo_turn_end.py

The method's authors found this placement unstable (arXiv 2509.14480): it is here to be compared.
"""

from tarl_jax.config.presets import sized


def get_config(size: str = ""):
    config = sized(size)
    config.name = "ppo_turn_end"
    config.rl.learning_rate = 1e-4
    config.reward.placement = "turn_end"
    config.rl.advantage = "gae"
    config.rl.normalise = "batch"
    return config
