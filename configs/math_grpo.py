"""GRPO on the verifier alone, maths problems of medium difficulty among the tool tasks.

    python -m tarl_jax.main --config=configs/math_grpo.py

`configs/math_tarl.py` without the judge; its docstring says the rest. No figures yet.
"""

from tarl_jax.presets import sized


def get_config(size: str = ""):
    config = sized(size)
    config.name = "math_grpo"
    config.reward.placement = "terminal"
    config.maths.ratio = (0.25,)
    config.eval.maths_tasks = 8 if size == "tiny" else 64
    if size != "tiny":  # which solves none: it has no problem of medium difficulty
        config.maths.min_pass, config.maths.max_pass = 0.1, 0.9
    if config.warm_start.steps:
        config.maths.demonstrations = 0.2
    return config
