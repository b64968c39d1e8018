"""The policy: its decoder and adapters; its audio encoder is in `audio.py`."""

from __future__ import annotations

import dataclasses

from tarl_jax.config.audio import AudioConfig


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters (arXiv 2106.09685) on frozen weights. `rank=0`: all weights train."""

    rank: int = 0
    alpha: float = 32.0  # the adapter's product is scaled by alpha / rank
    targets: tuple[str, ...] = ("wq", "wk", "wv", "wo", "w_gate", "w_up", "w_down")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Shape of the decoder, Qwen3's or Qwen2.5's, and how it computes.

    Names of the shape follow Hugging Face's where they have one.
    pretrained: folder of a Hugging Face checkpoint, with its tokenizer; it decides the shape, which
      need not be given. Empty: random parameters and the embedded tokenizer.
    size: the published model whose shape this is, until the checkpoint's own takes its place; such
      a one is trained from `pretrained` alone. Empty: the shape is the run's own.
    dtype: of activations and matrix products; "float32" or "bfloat16".
    param_dtype: of the parameters; "bfloat16" only where they are frozen.
    remat: what the backward pass computes again: "none", "dots" (all but matrix products) or
      "full" (each layer, from its input).
    attention: "auto" (by platform), "xla", "splash" (TPU) or "cudnn" (GPU).
    audio: the encoder that a policy hears with; by default none.
    """

    d_model: int = 128
    num_layers: int = 3
    num_heads: int = 4
    num_kv_heads: int = 4
    head_dim: int = 32
    d_ff: int = 384
    rope_theta: float = 10_000.0
    rms_norm_eps: float = 1e-6
    qk_norm: bool = True
    qkv_bias: bool = False
    tie_embeddings: bool = True
    vocab_size: int = 0  # 0: the tokenizer's; checkpoints round theirs up
    scan_layers: bool = False  # one compiled layer, for deep models; unrolled is faster for few
    pretrained: str = ""
    size: str = ""
    dtype: str = "float32"
    param_dtype: str = "float32"
    remat: str = "none"
    attention: str = "auto"
    lora: LoraConfig = LoraConfig()
    audio: AudioConfig = dataclasses.field(default_factory=AudioConfig)
