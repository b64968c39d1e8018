"""Clips come back from disk to the sample; the cache says each text once."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tarl_jax.speech.clips import (
    CachedSynthesiser,
    load_clip,
    load_clips,
    save_clip,
    save_clips,
)
from tarl_jax.speech.synthesis import SpeechError, Voice, quantise, to_clip

RNG = np.random.default_rng(0)
CLIP = quantise(0.3 * RNG.standard_normal(4000))
VOICE = Voice("en-us")


class Counting:
    """Says noise that depends on text and voice, and counts."""

    def __init__(self):
        self.said = []

    def say(self, text, voice):
        self.said.append((text, voice))
        if text == "fail":
            raise SpeechError("server", "no")
        return np.roll(CLIP, len(self.said))

    def version(self, voice):
        return "counting"

    def close(self):
        self.said.append("closed")


def whole_range():
    return np.arange(-32768, 32768).astype(np.float32) / 32768


@pytest.mark.parametrize("name", ["a.flac", "a.wav"])
def test_every_16_bit_value_survives_the_disk(tmp_path, name):
    save_clip(tmp_path / name, whole_range())
    found = load_clip(tmp_path / name)
    assert found.tobytes() == whole_range().tobytes()
    assert soundfile.info(tmp_path / name).samplerate == 16_000
    assert [p.name for p in tmp_path.iterdir()] == [name]  # no part is left


@pytest.mark.parametrize("bad", [
    CLIP + np.float32(1e-6), CLIP[:, None], np.full(9, np.nan, np.float32),
    np.full(9, 1.0, np.float32),
])
def test_what_16_bits_do_not_hold_is_refused(tmp_path, bad):
    with pytest.raises(ValueError, match="not one row of 16-bit values"):
        save_clip(tmp_path / "a.flac", bad)
    assert list(tmp_path.iterdir()) == []


def test_clips_beside_a_trajectory_come_back_exactly(tmp_path):
    clips = [CLIP, CLIP[::-1].copy(), CLIP]
    names = save_clips(tmp_path / "clips", clips)
    assert names[0] == names[2] != names[1]
    for found, clip in zip(load_clips(tmp_path / "clips", names), clips, strict=True):
        assert found.dtype == clip.dtype
        assert found.tobytes() == clip.tobytes()
    assert save_clips(tmp_path / "clips", clips) == names


def test_a_clip_is_made_of_other_rates_and_channels():
    time = np.arange(44_100) / 44_100
    stereo = np.stack([np.sin(2 * np.pi * 500 * time), 0 * time], axis=1)
    clip = to_clip(stereo, 44_100, "x")
    assert abs(len(clip) - 16_000) <= 1
    expected = 0.5 * np.sin(2 * np.pi * 500 * np.arange(16_000) / 16_000)
    np.testing.assert_allclose(clip[500:15_500], expected[500:15_500], atol=2e-3)


@pytest.mark.parametrize("samples, rate, kind", [
    (CLIP, 4000, "rate"), (CLIP, 0, "rate"), (CLIP, 1_000_000, "rate"),
    (np.append(CLIP, np.inf), 16_000, "not_finite"),
    (np.append(CLIP, np.nan), 16_000, "not_finite"),
    (0.0009 * np.sign(CLIP), 16_000, "silent"), (CLIP[:0], 16_000, "silent"),
])
def test_what_is_no_speech_has_its_kind(samples, rate, kind):
    with pytest.raises(SpeechError, match="the culprit") as caught:
        to_clip(samples, rate, "the culprit")
    assert caught.value.kind == kind


def test_no_zero_is_negative():
    assert quantise(np.array([-1e-9, 0.5])).tobytes() == np.array([0, 0.5], np.float32).tobytes()


def test_too_loud_is_made_quieter_as_a_whole():
    found = quantise(4 * CLIP)
    np.testing.assert_allclose(found, CLIP / np.abs(CLIP).max(), atol=1e-4)
    assert found.min() >= -1 and found.max() <= 32767 / 32768


# ---- cache ----------------------------------------------------------------------------------


def test_the_cache_says_each_text_once(tmp_path):
    inner = Counting()
    cache = CachedSynthesiser(inner, tmp_path)
    first = cache.say("hello", VOICE)
    np.testing.assert_array_equal(cache.say("hello", VOICE), first)
    other = CachedSynthesiser(Counting(), tmp_path)
    np.testing.assert_array_equal(other.say("hello", VOICE), first)
    assert inner.said == [("hello", VOICE)]


def test_another_text_voice_or_engine_is_another_clip(tmp_path, monkeypatch):
    inner = Counting()
    cache = CachedSynthesiser(inner, tmp_path)
    asked = [("a", VOICE), ("b", VOICE), ("a", Voice("en")), ("a", Voice("en-us", 1.1)),
             ("a", Voice("en-us", 1.0, 0.4))]
    for text, voice in asked:
        cache.say(text, voice)
    assert inner.said == asked
    monkeypatch.setattr(inner, "version", lambda voice: "counting 2")
    CachedSynthesiser(inner, tmp_path).say("a", VOICE)
    assert len(inner.said) == len(asked) + 1


def test_a_failure_is_not_kept(tmp_path):
    inner = Counting()
    cache = CachedSynthesiser(inner, tmp_path)
    for _ in range(2):
        with pytest.raises(SpeechError, match="server: no"):
            cache.say("fail", VOICE)
    assert len(inner.said) == 2 and not list(tmp_path.rglob("*.flac"))
    cache.close()
    assert inner.said[-1] == "closed"


@pytest.mark.parametrize("harm", [b"", b"not a sound"])
def test_a_broken_file_is_made_again(tmp_path, harm):
    inner = Counting()
    cache = CachedSynthesiser(inner, tmp_path)
    cache.say("hello", VOICE)
    cache.path("hello", VOICE).write_bytes(harm)
    again = cache.say("hello", VOICE)
    assert len(inner.said) == 2
    np.testing.assert_array_equal(cache.say("hello", VOICE), again)
    assert len(inner.said) == 2


def test_processes_share_a_cache(tmp_path):
    source = f"""
import sys; sys.path[:0] = {sys.path!r}
import hashlib
from pathlib import Path
from tarl_jax.speech.clips import CachedSynthesiser
from tarl_jax.speech.espeak import Espeak
from tarl_jax.speech.synthesis import Voice
speech = CachedSynthesiser(Espeak(timeout_seconds=120), Path({str(tmp_path)!r}))
total = hashlib.sha256()
for i in range(8):
    total.update(speech.say(f"Sentence {{i % 4}}.", Voice("en-us")).tobytes())
print(total.hexdigest())
speech.close()
"""
    running = [
        subprocess.Popen([sys.executable, "-c", source], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [process.communicate()[0] for process in running]
    assert [process.returncode for process in running] == [0, 0]
    assert said[0] == said[1] != ""
    files = [p for p in Path(tmp_path).rglob("*") if p.is_file()]
    assert len(files) == 4 and all(p.suffix == ".flac" for p in files)
