"""GRPO with TARL's reward for a policy that hears: written tasks, spoken ones, and maths.

    python -m tarl_jax.main --config=configs/omni_tarl.py

After a warm-up of 30 steps half of the users of tool tasks speak, and a quarter of a step's tasks
are maths problems (arXiv 2509.14480 mixes these three after such a warm-up). Every evaluation plays
the same tasks read and heard.

The architecture is that of Qwen2.5-Omni's thinker (arXiv 2503.20215), a small one, or with
`:qwen2_5_omni_7b` and `--config.model.pretrained=FOLDER` its own. Needs `pip install -e
'.[speech]'`. The small one is taught to hear in its warm start, which is cached (docs/speech.md);
how well has not been measured.
"""

from tarl_jax.presets import hearing


def get_config(size: str = ""):
    config = hearing(size)
    config.name = "omni_tarl"
    config.eval.heard = ("clean",)
    config.curriculum.warmup_steps = 2 if size == "tiny" else 30
    config.maths.ratio = (0.25,)
    config.eval.maths_tasks = 8 if size == "tiny" else 64
    if size != "tiny":  # which solves none: it has no problem of medium difficulty
        config.maths.min_pass, config.maths.max_pass = 0.1, 0.9
    if config.warm_start.steps:
        config.maths.demonstrations = 0.2
    return config
