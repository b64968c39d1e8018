"""RLOO (arXiv 2402.14740) on TARL's reward: the mean of a group's other episodes is the baseline.

    python -m tarl_jax.main --config=configs/rloo.py

Seen in experiments/credit, three seeds of 60 steps at commit 796eb73: pass^1 0.376-0.392 ->
0.608-0.620, pass^4 0.105-0.121 -> 0.363-0.387; six minutes a run on one core.
On the long tier's tasks, where success is rare, its pass^1 is 0.234, that of configs/grpo_tarl.py
0.161 (three seeds).
"""

from tarl_jax.config.presets import sized


def get_config(size: str = ""):
    config = sized(size)
    config.name = "rloo"
    config.rl.advantage = "rloo"
    config.rl.normalise = "none"
    return config
