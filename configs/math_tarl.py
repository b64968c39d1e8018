"""GRPO with TARL's reward, maths problems of medium difficulty among the tool tasks.

    python -m tarl_jax.main --config=configs/math_tarl.py

A quarter of each step's tasks are maths problems: made from a seed, or, for a pretrained model, of
a file such as DeepScaleR's, whose answers the extra `maths` checks:

    python -m tarl_jax.main --config=configs/math_tarl.py:qwen3_8b --config.model.pretrained=DIR \\
      --config.maths.file=deepscaler.json

No figures yet: docs/maths.md says what there is to set.
"""

from tarl_jax.presets import sized


def get_config(size: str = ""):
    config = sized(size)
    config.name = "math_tarl"
    config.maths.ratio = (0.25,)
    config.eval.maths_tasks = 8 if size == "tiny" else 64
    if size != "tiny":  # which solves none: it has no problem of medium difficulty
        config.maths.min_pass, config.maths.max_pass = 0.1, 0.9
    if config.warm_start.steps:
        config.maths.demonstrations = 0.2
    return config
