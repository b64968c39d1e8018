"""A clip that arrives in parts gives what the whole clip gives."""

import jax
import numpy as np
import pytest

from tarl_jax.config import InputError, ModelConfig
from tarl_jax.config.audio import AudioConfig
from tarl_jax.models import decoder
from tarl_jax.models.audio_inputs import encode, pieces_of, tokens_of
from tarl_jax.models.incoming import IncomingClip

MODEL = ModelConfig(
    d_model=32, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=16, d_ff=48,
    audio=AudioConfig(num_mel_bins=16, d_model=32, encoder_layers=2, encoder_attention_heads=2,
                      encoder_ffn_dim=48, n_window=20, output_dim=32),
)  # pieces of 0.4 s
SECOND = 16_000


@pytest.fixture(scope="module")
def params():
    return decoder.init_params(MODEL, 40, jax.random.key(0))


@pytest.fixture(scope="module")
def encoder(params):
    encoded = jax.jit(lambda pieces: encode(params, MODEL, pieces))
    return lambda pieces: np.asarray(encoded(pieces))


def clip(seconds, seed=0):
    rng = np.random.default_rng(seed)
    wave = 0.2 * rng.standard_normal(round(seconds * SECOND))
    return (wave * np.abs(np.sin(np.arange(len(wave)) / 3000))).astype(np.float32)


def louder_later(seconds):
    """So quiet at first that what comes then lifts the floor above it."""
    wave = clip(seconds, 1)
    wave[: len(wave) // 2] *= 1e-4
    return wave


def whole(sound, encoder):
    found = encoder(pieces_of(sound, MODEL.audio))
    return found.reshape(-1, found.shape[-1])[: tokens_of(len(sound))]


def in_parts(sound, encoder, size):
    incoming = IncomingClip(MODEL, encoder)
    kept, before = [], incoming.encoded
    for first in range(0, len(sound), size):
        count = incoming.feed(sound[first : first + size])
        np.testing.assert_array_equal(incoming.encoded[:count], before[:count])
        kept.append((count, len(before)))
        before = incoming.encoded
    count = incoming.end()
    np.testing.assert_array_equal(incoming.encoded[:count], before[:count])
    return incoming, [*kept, (count, len(before))]


SOUNDS = {
    "2.03 s": clip(2.03), "whole pieces": clip(1.6), "one frame more": clip(1.61),
    "less than a piece": clip(0.1), "hardly anything": clip(0.012), "louder later":
    louder_later(2.0), "silence": np.zeros(SECOND, np.float32),
}


@pytest.mark.parametrize("size", [3_200, 1_111, 100_000])
@pytest.mark.parametrize("name", SOUNDS)
def test_in_parts_is_as_at_once(name, size, encoder):
    sound = SOUNDS[name]
    incoming, kept = in_parts(sound, encoder, size)
    expected = whole(sound, encoder)
    assert incoming.encoded.shape == expected.shape
    np.testing.assert_allclose(incoming.encoded, expected, atol=1e-4, rtol=0)
    if name == "2.03 s" and size == 3_200:
        assert len([1 for count, _ in kept if count]) > 3  # it was heard before its end
        assert incoming.again <= 2
    if name == "louder later" and size != 100_000:
        assert incoming.again > 0 and any(count < before for count, before in kept)


def test_a_clip_of_nothing_is_refused(encoder):
    with pytest.raises(InputError, match="no samples"):
        IncomingClip(MODEL, encoder).end()
