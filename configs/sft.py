"""Imitation alone, then an evaluation: of the clerk that errs, or fine-tuning of a checkpoint.

    python -m tarl_jax.main --config=configs/sft.py

makes the base that `grpo_tarl.py` begins with; seen with seed 0: pass^1 0.392 (0.349 to 0.431) at
commit dd23f0b, 0.440 (0.399 to 0.481) at fd69e2c, on 256 held-out tasks x 4 trials.

    python -m tarl_jax.main --config=configs/sft.py:qwen3_8b_lora --config.model.pretrained=DIR \\
      --config.sft.file=dialogues.jsonl

fine-tunes a published model on the dialogues of a file, or without one on those of the faultless
clerk of the embedded shop; docs/sft.md has the layout of the file. With `--config.sft.steps=N` any
other config begins so. No figures of it yet.
"""

from tarl_jax.config.presets import sized


def get_config(size: str = ""):
    config = sized(size)
    config.name = "sft"
    config.rl.steps = 0
    if config.model.size:  # of a published model
        config.sft.steps = 200
        config.sft.learning_rate = 1e-4 if config.model.lora.rank else 1e-5
    return config
