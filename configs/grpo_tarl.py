"""TARL as it learns best here: verdict and judge on the stage that earned them, and on the episode.

    python -m tarl_jax.main --config=configs/grpo_tarl.py

A stage is the part of an episode between decided goals; what it earned is compared with the group's
other episodes that reached it, without division by a spread, and the episode's own advantage is
added (docs/credit.md). A minor turn, such as a malformed one, costs what a right one earns.
`configs/tarl_published.py` is the published reading.
"""

from tarl_jax.config.presets import sized


def get_config(size: str = ""):
    config = sized(size)
    config.name = "grpo_tarl"
    config.reward.placement = "stage"
    config.reward.episode_weight = 1.0
    config.reward.minor_scale = 5.0
    return config
