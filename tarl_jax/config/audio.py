"""The shape of a policy's audio encoder, a part of `ModelConfig`; by default there is none."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any


@dataclasses.dataclass(frozen=True)
class AudioConfig:
    """Shape of the audio encoder; names are Hugging Face's, defaults Qwen2.5-Omni-7B's.

    encoder_layers: 0: none, the policy hears nothing (Omni-7B has 32).
    n_window: half of the mel frames of a chunk, so its positions.
    output_dim: width of the decoder.
    frozen: the encoder does not train.
    """

    num_mel_bins: int = 128  # of the log-mel spectrogram
    d_model: int = 1280  # width of the encoder
    encoder_layers: int = 0
    encoder_attention_heads: int = 20  # divides the width
    encoder_ffn_dim: int = 5120  # width of its feed-forward part
    n_window: int = 100
    max_source_positions: int = 1500  # rows of the table of positions
    output_dim: int = 3584
    frozen: bool = False

    def __bool__(self) -> bool:
        return self.encoder_layers > 0

    @property
    def head_dim(self) -> int:
        return self.d_model // self.encoder_attention_heads


def check_audio(
    audio: AudioConfig, width: int, require: Callable[[bool, str, Any, str], None]
) -> None:
    """Calls `require` of `config.checks` for all fields; `width` is the decoder's."""
    where = "model.audio."
    require(audio.encoder_layers >= 0, f"{where}encoder_layers", audio.encoder_layers,
            "must be at least 0")
    for name in ("num_mel_bins", "encoder_attention_heads", "encoder_ffn_dim"):
        value = getattr(audio, name)
        require(value > 0, where + name, value, "must be at least 1")
    heads = audio.encoder_attention_heads
    even = audio.d_model % heads == audio.d_model % 2 == 0
    require(even and audio.d_model >= 4, f"{where}d_model", audio.d_model,
            f"must be even, at least 4, a multiple of encoder_attention_heads = {heads}")
    require(0 < audio.n_window <= audio.max_source_positions and audio.n_window % 2 == 0,
            f"{where}n_window", audio.n_window, "must be even (tokens are pairs of positions), from"
            f" 2 to max_source_positions = {audio.max_source_positions}")
    require(not audio or audio.output_dim == width, f"{where}output_dim", audio.output_dim,
            f"must be model.d_model = {width}")
