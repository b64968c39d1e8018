"""The warm start alone: imitation of the clerk that errs, then an evaluation.

    python -m tarl_jax.main --config=configs/sft.py

The base that `grpo_tarl.py` begins with; seen with seed 0: pass^1 0.392 (0.349 to 0.431) at commit
dd23f0b, 0.440 (0.399 to 0.481) at fd69e2c, on 256 held-out tasks x 4 trials.
"""

from tarl_jax.config.presets import sized


def get_config(size: str = ""):
    config = sized(size)
    config.name = "sft"
    config.rl.steps = 0
    return config
