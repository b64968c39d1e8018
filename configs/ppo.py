"""PPO with the terminal reward alone: the verifier's verdict, a value model, GAE, no judge.

    python -m tarl_jax.main --config=configs/ppo.py

The value model has a trunk of its own and trains alone for the first ten steps; give it
--config.rl.value.trunk=shared where memory is short.
Seen in experiments/credit (--tier=standard --arms ppo --seeds 0), 60 steps at commit 1c80516:
pass^1 0.393 -> 0.682, pass^4 0.090 -> 0.449; twelve minutes on one core.
"""

from tarl_jax.config.presets import sized


def get_config(size: str = ""):
    config = sized(size)
    config.name = "ppo"
    config.reward.placement = "terminal"
    config.rl.advantage = "gae"
    config.rl.normalise = "batch"
    return config
