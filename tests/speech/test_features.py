"""The encoder's features of synthesised speech equal Whisper's."""

from importlib.util import find_spec

import jax
import numpy as np
import pytest
from transformers import WhisperFeatureExtractor

from tarl_jax.config.speech import parse_chain
from tarl_jax.models import audio_encoder
from tarl_jax.speech import acoustics, piper
from tarl_jax.speech.synthesis import Voice

TEXT = "My email is ada at mail dot com."


@pytest.mark.parametrize("chain", [
    "clean", "reverb:0.3+white:15", "telephone", "white:10", "pink:5", "babble:10",
    "telephone+loss:10", "speed:1.1+level:-20",
])
def test_log_mel_of_speech_equals_whispers(espeak, chain):
    clip = espeak.say(TEXT, Voice("en-gb-x-rp+f3", 1.1, 0.6))
    others = [espeak.say("It was here a minute ago.", Voice("en-us"))]
    compare(acoustics.apply(clip, parse_chain(chain), 0, others))


@pytest.mark.skipif(not find_spec("piper") or not find_spec(piper.PACKAGED),
                    reason="pip install -e '.[piper]'")
def test_log_mel_of_pipers_speech_equals_whispers():
    neural = piper.Piper(timeout_seconds=120)
    clip = neural.say(TEXT, Voice("en_US-joe-medium"))
    neural.close()
    for chain in ("clean", "telephone", "white:10"):
        compare(acoustics.apply(clip, parse_chain(chain), 0))


def compare(clip):
    seconds = len(clip) // audio_encoder.SAMPLE_RATE + 1
    extractor = WhisperFeatureExtractor(feature_size=128, chunk_length=seconds)
    found = extractor([clip], sampling_rate=audio_encoder.SAMPLE_RATE, padding="max_length",
                      return_attention_mask=True, return_tensors="np")
    theirs = found["input_features"][0][:, found["attention_mask"][0].astype(bool)].T
    ours = jax.jit(audio_encoder.log_mel)(clip)
    assert ours.shape == theirs.shape == (audio_encoder.frame_count(len(clip)), 128)
    np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=0)
