"""Simple Policy Optimization (arXiv 2401.16025) on TARL's reward: GRPO, a penalty for the clip.

    python -m tarl_jax.main --config=configs/spo.py

Two methods are called SPO; the other one is configs/single_stream.py.
"""

from tarl_jax.config.presets import sized


def get_config(size: str = ""):
    config = sized(size)
    config.name = "spo"
    config.rl.loss = "spo"
    config.rl.clip_low = config.rl.clip_high = 0.2
    config.rl.minibatches = 2  # in the first update of a step every ratio is 1
    return config
