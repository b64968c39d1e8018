"""GRPO where the user has tools too: phones that do not work, mended together with their owner.

    python -m tarl_jax.main --config=configs/telecom.py
    python -m tarl_jax.main --config=configs/telecom.py --config.sandbox.data=TAU2_BENCH

Without data the phones are those of the embedded carrier; with τ²-bench's (a checkout, or its
folder `data/tau2/domains/telecom`) they are its training split's, and its test split is held out.
Users are scripted, no key is needed. What an episode earns is by stage: the assertions of its
task that come to hold. Nobody judges turns, for the rule judge knows scripts alone.

The clerk that the warm start imitates leaves a fault as it is at times. A faultless dialogue about
an embedded phone has 330 tokens in the median, one of the benchmark's training tasks 780, and 4 of
100 of those more than the 1,280 that an episode may have (`--dry_run` prints both).
`:tiny` learns nothing.
"""

from tarl_jax.config.presets import sized


def get_config(size: str = ""):
    config = sized(size)
    config.name = "telecom"
    config.sandbox.domain = "telecom"
    config.reward.placement, config.reward.stage_judge = "stage", False
    if size in ("", "tiny"):
        config.rollout.max_turn_tokens = 64
        config.warm_start.target_pass = 0.0
        config.warm_start.clerk.false_done = 0.15
    if size == "":
        config.tasks.num_train, config.tasks.num_held_out = 1000, 256
        config.rollout.max_episode_tokens = 1280
        config.rollout.max_turns = 30
        config.rl.micro_batch_tokens = 5120
        config.rl.learning_rate = 3e-4
        # The benchmark's tasks break two to nine things at once.
        config.warm_start.requests = (0.15, 0.2, 0.2, 0.15, 0.1, 0.1, 0.1)
        config.warm_start.max_tokens = 1024
        config.warm_start.batch_tokens = 3072
        config.warm_start.episodes = 8000
    if size == "tiny":
        config.tasks.requests = (1.0,)
        config.rollout.max_episode_tokens = 768
        config.warm_start.episodes, config.warm_start.steps = 64, 12
    return config
