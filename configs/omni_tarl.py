"""GRPO with TARL's reward for a policy that hears: half of the users speak, half write.

    python -m tarl_jax.main --config=configs/omni_tarl.py:tiny

The architecture is that of Qwen2.5-Omni's thinker (arXiv 2503.20215), a small one or, with
`:qwen2_5_omni_7b` and `--config.model.pretrained=FOLDER`, its own. Needs `pip install -e
'.[speech]'`. The small ones start from a policy that has learned to write by reading alone: their
ears are random at first. Nothing has been measured with it yet.
"""

from tarl_jax.presets import hearing


def get_config(size: str = ""):
    config = hearing(size)
    config.name = "omni_tarl"
    return config
