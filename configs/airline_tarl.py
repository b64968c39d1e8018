"""GRPO with TARL's reward at the desk of the embedded airline.

    python -m tarl_jax.main --config=configs/airline_tarl.py

Users have one request each: 97% of the dialogues fit in 2,048 tokens, 1,150 on the average, since
the embedded tokenizer was made for the shop and spells the airline's records letter by letter. A
step has about four times the tokens of grpo_tarl.py's. No score is claimed: nobody has run it to
its end. With `:tiny` it takes a quarter longer than grpo_tarl.py does, and learns nothing.
"""

from tarl_jax.config.presets import sized


def get_config(size: str = ""):
    config = sized(size)
    config.name = "airline_tarl"
    config.reward.placement, config.reward.episode_weight = "stage", 1.0
    config.sandbox.domain = "airline"
    if size in ("", "tiny"):
        config.tasks.requests = (1.0,)
    if size == "":
        config.rollout.max_episode_tokens = 2048
        config.rollout.max_turn_tokens = 256
        config.rollout.slots = 64
    if size == "tiny":  # short, like the dialogues that it imitates: longer ones are left out
        config.rollout.max_episode_tokens = 1024
    return config
