"""GRPO with TARL's reward, maths problems of medium difficulty among the tool tasks.

    python -m tarl_jax.main --config=configs/math_tarl.py

A quarter of each step's tasks are maths problems: made from a seed, or, for a pretrained model, of
a file such as DeepScaleR's, whose answers the extra `maths` checks:

    python -m tarl_jax.main --config=configs/math_tarl.py:qwen3_8b --config.model.pretrained=DIR \\
      --config.maths.file=deepscaler.json

docs/maths.md says what there is to set.
"""

from tarl_jax.config.presets import mix_in_maths, sized


def get_config(size: str = ""):
    config = sized(size)
    config.name = "math_tarl"
    config.reward.placement, config.reward.episode_weight = "stage", 1.0
    mix_in_maths(config, size)
    return config
