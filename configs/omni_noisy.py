"""A policy that hears outside the laboratory: voices, noise, rooms, telephones, hesitations.

    pip install -e '.[speech,piper]'
    python -m tarl_jax.main --config=configs/omni_noisy.py
    python -m tarl_jax.main --config=configs/omni_noisy.py:tiny     # every part, in minutes

As configs/omni_tarl.py, whose users speak in silence and in two voices: here every turn, in the
warm start too, has acoustics of its own, 3 of 10 are clean, and the warm start masks bands and
stretches of what it transcribes (SpecAugment). Of seven of eSpeak's voices and Piper's neural one
two train nobody; every evaluation plays its tasks in writing, spoken clean, in white noise at 10
dB, by telephone, by those two, and by Piper's. It begins at a policy that the package keeps;
docs/speech.md has how well that one hears.
"""

from tarl_jax.config.presets import mix_in_maths, with_noise, with_speech


def get_config(size: str = ""):
    config = with_speech(size)
    config.name = "omni_noisy"
    config.reward.placement, config.reward.episode_weight = "stage", 1.0
    with_noise(config, size)
    config.eval.spoken = ("clean", "white:10", "telephone", "clean@held_out", "clean@piper")
    if not size:  # each task is played in six ways
        config.eval.tasks, config.eval.final_tasks = 32, 96
    config.curriculum.warmup_steps = 2 if size == "tiny" else 30
    mix_in_maths(config, size)
    return config
