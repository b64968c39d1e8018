"""Shapes of published models, for what is asked before their files are there: does it fit?

A run takes its shape from the checkpoint itself (`models/hf_config.completed`).
"""

from __future__ import annotations

import dataclasses

from tarl_jax.config.audio import AudioConfig
from tarl_jax.config.model import ModelConfig

_QWEN3 = ModelConfig(num_kv_heads=8, head_dim=128, rope_theta=1e6, vocab_size=151_936)
_OMNI = dataclasses.replace(
    _QWEN3, vocab_size=152_064, qk_norm=False, qkv_bias=True, tie_embeddings=False
)


def _of(
    base: ModelConfig, layers: int, width: int, d_ff: int, heads: int, kv_heads: int = 8
) -> ModelConfig:
    return dataclasses.replace(
        base, num_layers=layers, d_model=width, d_ff=d_ff, num_heads=heads, num_kv_heads=kv_heads
    )


SHAPES = {
    "qwen3_0_6b": _of(_QWEN3, 28, 1024, 3072, 16),
    "qwen3_1_7b": _of(_QWEN3, 28, 2048, 6144, 16),
    "qwen3_4b": _of(_QWEN3, 36, 2560, 9728, 32),
    "qwen3_8b": dataclasses.replace(_of(_QWEN3, 36, 4096, 12288, 32), tie_embeddings=False),
    "qwen2_5_omni_3b": dataclasses.replace(
        _of(_OMNI, 36, 2048, 11008, 16, kv_heads=2), vocab_size=151_936
    ),
    "qwen2_5_omni_7b": _of(_OMNI, 28, 3584, 18944, 28, kv_heads=4),
}
SHAPES = {size: dataclasses.replace(shape, size=size) for size, shape in SHAPES.items()}

# What the Omni models hear with.
AUDIO_SHAPES = {
    "qwen2_5_omni_3b": AudioConfig(encoder_layers=32, output_dim=2048),
    "qwen2_5_omni_7b": AudioConfig(encoder_layers=32),
}
