"""GRPO on the verifier alone, maths problems of medium difficulty among the tool tasks.

    python -m tarl_jax.main --config=configs/math_grpo.py

`configs/math_tarl.py` without the judge; its docstring says the rest.
"""

from tarl_jax.config.presets import mix_in_maths, sized


def get_config(size: str = ""):
    config = sized(size)
    config.name = "math_grpo"
    config.reward.placement = "terminal"
    mix_in_maths(config, size)
    return config
