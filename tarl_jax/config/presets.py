"""Sizes that every config in `configs/` takes as its argument: `--config=configs/grpo.py:tiny`.

A size is the mesh, lengths, batch and learning rate for a model of that size on named devices; the
model itself is the checkpoint that --config.model.pretrained names, without which none of the
published sizes trains. That each fits there at its full length says TPU's compiler, or a count
(docs/scaling.md); none has run.

| size | made for | or | what trains |
|---|---|---|---|
| (none) | a laptop's CPU, minutes | | all weights, warm start included |
| tiny | a laptop's CPU, a minute; learns nothing | | all weights |
| qwen3_0_6b, qwen3_1_7b | v5e 2x4 | 8 H100 | all weights |
| qwen3_4b, qwen3_8b | v5e 4x4 | 8 H100 | all weights |
| qwen3_8b_lora | | one GPU of 80 GB | adapters of rank 32 |
| qwen2_5_omni_3b, qwen2_5_omni_7b | v5e 4x4 | 8 H100 | the thinker's decoder |

With `_16k` behind its name each is for half the devices or less: episodes have 16,384 tokens in
place of 32,768. That cuts off 0.4% of tau-bench's retail training tasks, whose shortest faultless
dialogue is longer, and 4.4% where each turn has a thought of 300 tokens; 32,768 cut off none
(the table is in docs/sandbox.md):

| size | made for | or |
|---|---|---|
| qwen3_0_6b_16k, qwen3_1_7b_16k | v5e 2x2 | 4 A100 of 40 GB |
| qwen3_4b_16k, qwen2_5_omni_3b_16k | v5e 2x4 | 4 A100 of 40 GB |
| qwen3_8b_16k, qwen2_5_omni_7b_16k | v6e 2x4 | 4 H100 |
| qwen3_8b_lora_16k | | one A100 of 40 GB |

On one device, sizes that decode in parts need --config.mesh.rollout_tensor=1.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from tarl_jax.config import ConfigError, LoraConfig, RunConfig, to_config_dict
from tarl_jax.config.audio import AudioConfig
from tarl_jax.config.shapes import AUDIO_SHAPES, SHAPES

# How the published models are computed; what they are, their checkpoints say.
MODELS = {
    size: dataclasses.replace(shape, scan_layers=True, dtype="bfloat16", remat="full")
    for size, shape in SHAPES.items()
}
MODELS["qwen3_8b_lora"] = dataclasses.replace(
    MODELS["qwen3_8b"], lora=LoraConfig(rank=32, alpha=64.0), param_dtype="bfloat16"
)

SHORT = "_16k"  # behind a size's name: half its tokens
SIZES = (*MODELS, *(f"{size}{SHORT}" for size in MODELS))


def sized(size: str) -> Any:
    """A ConfigDict of the embedded default (size "") or of one of the sizes above.

    Raises ConfigError for any other size.
    """
    config = RunConfig()
    if size == "tiny":
        config = _tiny(config)
    elif size in SIZES:
        config = _large(config, size)
    elif size:
        raise ConfigError(
            f"size {size!r}: choose one of tiny, {', '.join(MODELS)}, each of these with"
            f" {SHORT} behind it for half its tokens, or none for the embedded default"
        )
    return to_config_dict(config)


VOICES = ("en-us", "en-gb-x-rp")  # that the small policies learn to hear

# What a policy of a size hears with. Omni's own, or a small one of the same architecture.
AUDIO_ENCODERS = {
    "": AudioConfig(num_mel_bins=40, d_model=128, encoder_layers=2, encoder_attention_heads=4,
                    encoder_ffn_dim=384, n_window=200, output_dim=128),
    "tiny": AudioConfig(num_mel_bins=40, d_model=32, encoder_layers=1, encoder_attention_heads=2,
                        encoder_ffn_dim=64, output_dim=32),
    **AUDIO_SHAPES,
}


def with_speech(size: str) -> Any:
    """`sized` with an audio encoder, and users of whom half speak.

    Sound has 25 tokens a second, several times as many as its text, so episodes are longer than
    those of the sizes without. Raises ConfigError for a size without an audio encoder.
    """
    encoder = AUDIO_ENCODERS.get(size.removesuffix(SHORT))
    if encoder is None:
        names = ", ".join(filter(None, AUDIO_ENCODERS))
        raise ConfigError(f"size {size!r} has no audio encoder: choose one of {names},"
                          " or none for the embedded default")
    config = sized(size)
    config.model.audio.update(dataclasses.asdict(encoder))
    config.speech.share = 0.5
    if size in ("", "tiny"):
        config.model.qk_norm, config.model.qkv_bias = False, True  # as Omni's thinker has it
        config.rollout.max_episode_tokens = 2048  # sound doubles them
        config.rl.pack = True  # few programs to compile
        config.rl.micro_batch_tokens = max(config.rl.micro_batch_tokens, 4096)
        config.warm_start.speech_stage.episodes = 1000 if not size else 16
        config.speech.voices, config.speech.speed = VOICES, (1.05, 1.25)
        config.warm_start.target_pass = 0.0  # learning to hear comes after
        config.warm_start.seed = 0  # whose omni_noisy the package keeps
    if size == "tiny":
        config.rollout.max_episode_tokens, config.rollout.slots = 512, 4
        config.warm_start.speech_stage.update(
            {"spaced": 16, "value_steps": 2, "steps": 4, "joint_steps": 4, "batch_seconds": 16.0,
             "batch_tokens": 2048}
        )
    return config


# What users' speech goes through where `with_noise` is asked for.
ACOUSTICS = (
    "white:5..30", "pink:5..30", "babble:8..25", "reverb:0.2..0.6", "telephone",
    "telephone+loss:1..8", "reverb:0.2..0.5+pink:10..25+telephone",
    "speed:0.92..1.08+level:-15..0", "hesitant:0.03..0.12",
    "hesitant:0.03..0.12+babble:10..25+telephone",
)
HELD_OUT = ("en-us-nyc", "en-gb-scotland+m3")  # train nobody
NEURAL = "piper:en_US-joe-medium"


def with_noise(config: Any, size: str) -> None:
    """Several voices, acoustics in every turn, masks in the warm start, and voices held out.

    What is heard in noise takes longer to learn than what is heard in silence; so the default
    begins at an encoder that knows five of the voices.
    """
    config.speech.voices = (*VOICES, "en", "en-us+f3", "en-029", NEURAL, *HELD_OUT)
    config.speech.held_out = HELD_OUT
    config.speech.acoustics, config.speech.acoustics_per = ACOUSTICS, "turn"
    config.speech.clean = 0.3
    config.warm_start.speech_stage.update({"frequency_masks": 1, "time_masks": 1})
    if not size:
        config.warm_start.speech_stage.update(
            {"encoder": "five_voices", "value_steps": 800, "joint_steps": 800}
        )


def mix_in_maths(config: Any, size: str) -> None:
    """A quarter of each step's tasks become maths problems of medium difficulty."""
    config.maths.ratio = (0.25,)
    config.eval.maths_tasks = 8 if size == "tiny" else 64
    if size != "tiny":  # which solves none: it has no problem of medium difficulty
        config.maths.min_pass, config.maths.max_pass = 0.1, 0.9
    if config.warm_start.steps:
        config.maths.demonstrations = 0.2


def _tiny(config: RunConfig) -> RunConfig:
    """Every part of a run in under a minute; for tests and for a first look."""
    replace = dataclasses.replace
    return replace(
        config,
        model=replace(config.model, d_model=32, num_layers=2, num_heads=2, num_kv_heads=1,
                      head_dim=16, d_ff=64),
        shop=replace(config.shop, num_users=40),
        tasks=replace(config.tasks, num_train=64, num_held_out=16),
        warm_start=replace(config.warm_start, episodes=240, branches=4, steps=120,
                           batch_tokens=2048,
                           target_pass=0.0, num_users=40),
        rollout=replace(config.rollout, tasks_per_step=4, group_size=4, slots=16,
                        max_episode_tokens=384, max_turn_tokens=24, max_turns=8, max_too_long=1.0,
                        share_prefix=0),
        rl=replace(config.rl, steps=3, decay_steps=0, minibatches=1, micro_batch_tokens=2048,
                   value=replace(config.rl.value, warmup_steps=1)),
        eval=replace(config.eval, every=2, tasks=4, final_tasks=8, trials=4, bootstrap=200),
        checkpoint=replace(config.checkpoint, every=1),
        log=replace(config.log, trajectories=8),
    )


def _large(config: RunConfig, size: str) -> RunConfig:
    """A published model on real hardware. The recipe is MUA-RL's and slime's (1e-6, 32 x 8)."""
    replace = dataclasses.replace
    model, short = MODELS[size.removesuffix(SHORT)], size.endswith(SHORT)
    adapters = model.lora.rank > 0
    rate = 2e-5 if adapters else 1e-6
    # The longer one: every dialogue of both benchmarks, with 300 tokens of thought a turn.
    length = 16_384 if short else 32_768
    # As many ways as the key heads go: so that weights leave room for the cache, and that what the
    # update keeps of a row is split along it.
    tensor = 1 if adapters else min(model.num_kv_heads, 4 if short else 8)
    return replace(
        config,
        model=model,
        mesh=replace(config.mesh, data=1, fsdp=-1, tensor=tensor, rollout_tensor=tensor),
        warm_start=replace(config.warm_start, steps=0),
        rollout=replace(config.rollout, tasks_per_step=32, group_size=8, slots=32,
                        max_episode_tokens=length, max_turn_tokens=1024, brief_writes=False,
                        several_calls="first", system_prompt="full",
                        # On one GPU: room for eight of the longest dialogues, 38.7 GB, or for
                        # four of half the length.
                        cache_tokens=(4 if short else 8) * length if adapters else 0),
        rl=replace(config.rl, steps=100, learning_rate=rate, decay_steps=0, minibatches=1,
                   micro_batch_tokens=length, pack=True,
                   value=replace(config.rl.value, learning_rate=10 * rate)),
        # Training draws from the whole distribution; evaluations as the checkpoint's files say.
        eval=replace(config.eval, temperature=-1.0, top_k=-1, top_p=-1.0, min_p=-1.0),
    )
