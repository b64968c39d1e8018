"""The encoder's features of synthesised speech equal Whisper's."""

import jax
import numpy as np
import pytest
from transformers import WhisperFeatureExtractor

from tarl_jax.config.speech import parse_chain
from tarl_jax.models import audio_encoder
from tarl_jax.speech import acoustics
from tarl_jax.speech.synthesis import Voice


@pytest.mark.parametrize("chain", ["clean", "reverb:0.3+white:15", "telephone"])
def test_log_mel_of_speech_equals_whispers(espeak, chain):
    clip = espeak.say("My email is ada at mail dot com.", Voice("en-gb-x-rp+f3", 1.1, 0.6))
    clip = acoustics.apply(clip, parse_chain(chain), 0)
    seconds = len(clip) // audio_encoder.SAMPLE_RATE + 1
    extractor = WhisperFeatureExtractor(feature_size=128, chunk_length=seconds)
    found = extractor([clip], sampling_rate=audio_encoder.SAMPLE_RATE, padding="max_length",
                      return_attention_mask=True, return_tensors="np")
    theirs = found["input_features"][0][:, found["attention_mask"][0].astype(bool)].T
    ours = jax.jit(audio_encoder.log_mel)(clip)
    assert ours.shape == theirs.shape == (audio_encoder.frame_count(len(clip)), 128)
    np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=0)
