"""The policy: its decoder and adapters; its audio encoder is in `audio.py`."""

from __future__ import annotations

import dataclasses

from tarl_jax.config.audio import AudioConfig


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters (arXiv 2106.09685) on frozen weights. `rank=0`: all weights train."""

    rank: int = 0  # of the two factors
    alpha: float = 32.0  # the adapter's product is scaled by alpha / rank
    targets: tuple[str, ...] = (  # matrices of each layer that have an adapter
        "wq", "wk", "wv", "wo", "w_gate", "w_up", "w_down",
    )


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

    d_model: int = 128  # width of the residual stream
    num_layers: int = 3  # of the decoder
    num_heads: int = 4  # query heads
    num_kv_heads: int = 4  # key and value heads; divides num_heads
    head_dim: int = 32  # width of a head
    d_ff: int = 384  # width of the gated feed-forward part
    rope_theta: float = 10_000.0  # base of the rotary positions
    rms_norm_eps: float = 1e-6  # added to the mean square in RMSNorm
    qk_norm: bool = True  # RMSNorm on each head's queries and keys, as Qwen3
    qkv_bias: bool = False  # biases on queries, keys and values, as Qwen2.5
    tie_embeddings: bool = True  # the output head is the embedding
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
