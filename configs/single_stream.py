"""Single-stream Policy Optimization (arXiv 2509.13232) on TARL's reward: no groups.

    python -m tarl_jax.main --config=configs/single_stream.py

As many episodes a step as the other configs, each of another task; a task's baseline is what it
earned on earlier visits. Two methods are called SPO; the other one is configs/spo.py. No figures
yet.
"""

from tarl_jax.config.presets import sized


def get_config(size: str = ""):
    config = sized(size)
    config.name = "single_stream"
    config.rollout.tasks_per_step *= config.rollout.group_size
    config.rollout.group_size = 1
    config.rl.advantage = "single_stream"
    config.rl.normalise = "batch"
    return config
