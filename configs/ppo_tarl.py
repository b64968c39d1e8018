"""PPO with TARL's reward as one number per episode, on its last token.

    python -m tarl_jax.main --config=configs/ppo_tarl.py

With discount and trace at 1 every sampled token's advantage is that number less the value of its
state, normalised over the batch.
Seen in experiments/credit, three seeds of 60 steps at commit 796eb73: pass^1 0.376-0.392 ->
0.600-0.612, pass^4 0.105-0.121 -> 0.371-0.391; twelve minutes a run on one core.
"""

from tarl_jax.config.presets import sized


def get_config(size: str = ""):
    config = sized(size)
    config.name = "ppo_tarl"
    config.rl.advantage = "gae"
    config.rl.normalise = "batch"
    return config
