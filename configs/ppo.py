"""PPO with the terminal reward alone: the verifier's verdict, a value model, GAE, no judge.

    python -m tarl_jax.main --config=configs/ppo.py

The value model has a trunk of its own and trains alone for the first ten steps; give it
--config.rl.value.trunk=shared where memory is short.
"""

from tarl_jax.config.presets import sized


def get_config(size: str = ""):
    config = sized(size)
    config.name = "ppo"
    config.rl.learning_rate = 1e-4
    config.reward.placement = "terminal"
    config.rl.advantage = "gae"
    config.rl.normalise = "batch"
    return config
