"""OpenAI's endpoint, played by a process of its own: what it gives, and every way it fails."""

import json
import struct
import subprocess
import sys
import traceback
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from tarl_jax.speech.clips import load_clip
from tarl_jax.speech.server import SpeechServer
from tarl_jax.speech.synthesis import SpeechError, Voice, to_clip

VOICE = Voice("alloy", speed=1.25)


@pytest.fixture(scope="module")
def address():
    command = [sys.executable, str(Path(__file__).with_name("speech_server.py"))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        process.kill()


@pytest.fixture
def make(address):
    made = []

    def server(model, **options):
        options = {"timeout_seconds": 60.0, "retries": 0, "wait_seconds": 0.01, **options}
        made.append(SpeechServer(f"{address}/v1", model, **options))
        return made[-1]

    yield server
    for each in made:
        each.close()


def requests(address, model):
    with urllib.request.urlopen(address) as answer:
        return [r for r in json.load(answer) if r["model"] == model]


@pytest.mark.parametrize("audio_format", ["wav", "pcm"])
def test_a_clip_of_a_server(make, address, audio_format, monkeypatch):
    monkeypatch.setenv("SOME_KEY", "secret-1")
    server = make("good", audio_format=audio_format, api_key_env="SOME_KEY")
    clip = server.say("Hello there.", VOICE)
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000)
    np.testing.assert_allclose(clip[500:15_500], tone[500:15_500], atol=2e-3)
    asked = requests(address, "good")[-1]
    assert asked == {
        "path": "/v1/audio/speech", "key": "Bearer secret-1", "model": "good", "voice": "alloy",
        "input": "Hello there.", "speed": 1.25, "response_format": audio_format,
    }
    assert "secret-1" not in server.engine


def test_a_failure_that_passes_is_tried_again(make, address):
    assert len(make("fails twice", retries=2).say("Hello.", VOICE)) == 16_000
    assert len(requests(address, "fails twice")) == 3


@pytest.mark.parametrize("model, kind, options, tries", [
    ("fails", "server", {"retries": 2}, 3),
    ("refuses", "server", {"retries": 2}, 1),
    ("hangs", "timeout", {"retries": 1, "timeout_seconds": 0.5}, 2),
    ("drips", "timeout", {"timeout_seconds": 1.0}, 1),
    ("breaks off", "server", {"retries": 1}, 2),
    ("silent", "silent", {"retries": 2}, 1),
    ("low rate", "rate", {}, 1),
    ("not finite", "not_finite", {}, 1),
    ("prose", "format", {}, 1),
    ("empty", "format", {}, 1),
])
def test_every_fault_has_its_kind_and_its_number_of_tries(make, address, model, kind, options,
                                                          tries):
    with pytest.raises(SpeechError) as caught:
        make(model, **options).say("Hello.", VOICE)
    assert caught.value.kind == kind, caught.value
    # A server too busy to be asked in time was asked all the same, only not heard.
    assert len(requests(address, model)) <= tries
    if kind != "timeout":
        assert len(requests(address, model)) == tries


def test_a_key_that_a_server_repeats_is_not_shown(make, monkeypatch):
    monkeypatch.setenv("SOME_KEY", " secret-0123 ")
    with pytest.raises(SpeechError) as raised:
        make("repeats the key", api_key_env="SOME_KEY").say("Hello.", VOICE)
    assert "wrong key Bearer ***" in str(raised.value) and len(str(raised.value)) < 1000
    shown = "".join(traceback.format_exception(raised.value))
    assert "secret-0123" not in shown


def test_a_refusal_without_end_is_read_to_a_bound(make):
    with pytest.raises(SpeechError, match=r"400 on 'Hello\.'"):
        make("refuses without end").say("Hello.", VOICE)


def test_the_message_has_what_the_server_said(make):
    with pytest.raises(SpeechError, match=r"400 on 'Hello\.': .*no such voice"):
        make("refuses").say("Hello.", VOICE)


def test_a_wav_that_was_to_be_bare_samples_is_refused(make):
    with pytest.raises(SpeechError, match=r"format: .*ask for wav"):
        make("prose", audio_format="pcm").say("Hello.", VOICE)


def test_nobody_there():
    server = SpeechServer("http://127.0.0.1:9/v1", "x", retries=0, timeout_seconds=60)
    with pytest.raises(SpeechError, match="server: "):
        server.say("Hello.", VOICE)
    server.close()


def test_a_pitch_is_refused(make):
    with pytest.raises(SpeechError, match=r"voice: .*needs pitch 0\.5"):
        make("good").say("Hello.", Voice("alloy", pitch=0.6))


# ---- headers and rates ---------------------------------------------------------------------------

PCM = (np.sin(np.arange(24_000) / 20) * 9_000).astype("<i2").tobytes()


def header(riff, data, *more):
    return (b"RIFF" + struct.pack("<I", riff) + b"WAVEfmt "
            + struct.pack("<IHHIIHH", 16, 1, 1, 24_000, 48_000, 2, 16) + b"".join(more)
            + b"data" + struct.pack("<I", data))


@pytest.mark.parametrize("riff, data", [
    (36 + len(PCM), len(PCM)), (0, 0), (36, 0), (2**32 - 1,) * 2, (2**31 - 1,) * 2, (0, 2**32 - 1),
    (2_000_000_036, 2_000_000_000), (36 + len(PCM), 0),
])
@pytest.mark.parametrize("more", [(), (b"LIST" + struct.pack("<I", 3) + b"abc\0",)])
def test_a_header_that_was_written_before_the_sound(make, tmp_path, riff, data, more):
    wav = header(riff, data, *more) + PCM
    clip = make("x")._decode(wav, "hello")
    assert abs(len(clip) - 16_000) < 20
    (tmp_path / "a.wav").write_bytes(wav)
    np.testing.assert_array_equal(load_clip(tmp_path / "a.wav"), clip)


def test_what_stands_behind_the_sound_is_not_heard(make):
    tail = b"LIST" + struct.pack("<I", 4) + b"\xff\x7f" * 2
    whole = header(36 + len(PCM), len(PCM)) + PCM
    heard = [make("x")._decode(data, "a") for data in (whole + tail, whole)]
    np.testing.assert_array_equal(*heard)


@pytest.mark.parametrize("data", [b"", b"RIFF", b"RIFF\0\0\0\0WAVE", header(0, 0)])
def test_a_header_without_sound_is_refused(make, data):
    with pytest.raises(SpeechError) as caught:
        make("x")._decode(data, "hello")
    assert caught.value.kind in ("format", "silent")


@pytest.mark.parametrize("kind, rate, seconds", [
    ("audio/pcm;rate=16000", 24_000, 1.5), ("audio/L16; rate=22050; channels=1", 24_000, 1.0884),
    ('audio/pcm; Rate="48000"', 24_000, 0.5), ("audio/pcm", 24_000, 1.0), ("", 16_000, 1.5),
    ("audio/pcm; rate=48000; channels=2", 24_000, 0.25),
])
def test_the_rate_of_bare_samples(make, kind, rate, seconds):
    server = make("x", audio_format="pcm", pcm_rate=rate)
    assert len(server._decode(PCM, "hello", kind)) / 16_000 == pytest.approx(seconds, abs=2e-3)


def test_clips_of_another_rate_are_kept_apart(make):
    engines = {make("x", audio_format="pcm", pcm_rate=rate).engine for rate in (16_000, 24_000)}
    assert len(engines) == 2 and make("x", audio_format="pcm").engine.endswith("pcm")


def test_a_server_that_says_its_rate(make):
    clip = make("good, 16 kHz", audio_format="pcm").say("Hello.", VOICE)
    assert len(clip) == 24_000  # 24,000 samples at 16 kHz


def test_channels_in_opposite_phase_are_heard():
    tone = 0.5 * np.sin(np.arange(16_000) / 9).astype(np.float32)
    clip = to_clip(np.stack([tone, -tone], axis=1), 16_000, "x")
    np.testing.assert_allclose(clip, tone, atol=1e-4)
    half = to_clip(np.stack([tone, 0 * tone], axis=1), 16_000, "x")
    np.testing.assert_allclose(half, tone / 2, atol=1e-4)
