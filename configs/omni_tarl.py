"""GRPO with TARL's reward for a policy that hears: written tasks, spoken ones, and maths.

    python -m tarl_jax.main --config=configs/omni_tarl.py

After a warm-up of 30 steps half of the users of tool tasks speak, and a quarter of a step's tasks
are maths problems (arXiv 2509.14480 mixes these three after such a warm-up). Every evaluation plays
the same tasks written and spoken.

The architecture is that of Qwen2.5-Omni's thinker (arXiv 2503.20215), a small one, or with
`:qwen2_5_omni_7b` and `--config.model.pretrained=FOLDER` its own. Needs `pip install -e
'.[speech]'`. The small one is taught to hear in its warm start, which is cached; how well is in
docs/speech.md. 60 steps brought pass^1 from 0.401 to 0.629 written and from 0.355 to 0.515
spoken, means of three seeds (experiments/speech/earlier, which has this without maths and warm-up
too).
"""

from tarl_jax.config.presets import mix_in_maths, with_speech


def get_config(size: str = ""):
    config = with_speech(size)
    config.name = "omni_tarl"
    config.reward.placement, config.reward.episode_weight = "stage", 1.0
    config.eval.spoken = ("clean",)
    config.curriculum.warmup_steps = 2 if size == "tiny" else 30
    mix_in_maths(config, size)
    return config
