"""GRPO with TARL's reward, maths problems of medium difficulty among the tool tasks.

    python -m tarl_jax.main --config=configs/math_tarl.py

A quarter of each step's tasks are maths problems: made from a seed, or, for a pretrained model, of
a file such as DeepScaleR's, whose answers the extra `maths` checks:

    python -m tarl_jax.main --config=configs/math_tarl.py:qwen3_8b --config.model.pretrained=DIR \\
      --config.maths.file=deepscaler.json

docs/maths.md says what there is to set.
Seen in experiments/credit, three seeds of 60 steps at commit 796eb73: pass^1 0.376-0.392 ->
0.571-0.617, pass^4 0.105-0.121 -> 0.309-0.371; six minutes a run on one core.
"""

from tarl_jax.config.presets import mix_in_maths, sized


def get_config(size: str = ""):
    config = sized(size)
    config.name = "math_tarl"
    mix_in_maths(config, size)
    return config
