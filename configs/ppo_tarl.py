"""PPO with TARL's reward as one number per episode, on its last token.

    python -m tarl_jax.main --config=configs/ppo_tarl.py

With discount and trace at 1 every sampled token's advantage is that number less the value of its
state, normalised over the batch.
"""

from tarl_jax.config.presets import sized


def get_config(size: str = ""):
    config = sized(size)
    config.name = "ppo_tarl"
    config.rl.learning_rate = 1e-4
    config.rl.advantage = "gae"
    config.rl.normalise = "batch"
    return config
