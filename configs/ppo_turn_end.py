"""PPO with each turn's part of TARL's reward on the turn's last token.

    python -m tarl_jax.main --config=configs/ppo_turn_end.py

The method's authors found this placement unstable (arXiv 2509.14480): it is here to be compared.
Seen in experiments/credit, three seeds of 60 steps at commit 796eb73: pass^1 0.376-0.392 ->
0.604-0.625, pass^4 0.105-0.121 -> 0.328-0.379; twelve minutes a run on one core.
"""

from tarl_jax.config.presets import sized


def get_config(size: str = ""):
    config = sized(size)
    config.name = "ppo_turn_end"
    config.reward.placement = "turn_end"
    config.rl.advantage = "gae"
    config.rl.normalise = "batch"
    return config
