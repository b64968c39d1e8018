"""An audio encoder that is made and compiled in a moment; a piece is 0.2 s."""

from tarl_jax.config.audio import AudioConfig


def small_encoder(width):
    """For a decoder of that width."""
    return AudioConfig(
        num_mel_bins=8, d_model=12, encoder_layers=1, encoder_attention_heads=2,
        encoder_ffn_dim=16, n_window=10, output_dim=width,
    )
