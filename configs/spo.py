"""Simple Policy Optimization (arXiv 2401.16025) on TARL's reward: GRPO, a penalty for the clip.

    python -m tarl_jax.main --config=configs/spo.py

Two methods are called SPO; the other one is configs/single_stream.py.
Seen in experiments/credit, three seeds of 60 steps at commit 796eb73: pass^1 0.376-0.392 ->
0.547-0.593, pass^4 0.105-0.121 -> 0.285-0.344; six minutes a run on one core.
"""

from tarl_jax.config.presets import sized


def get_config(size: str = ""):
    config = sized(size)
    config.name = "spo"
    config.rl.loss = "spo"
    config.rl.clip_low = config.rl.clip_high = 0.2
    return config
