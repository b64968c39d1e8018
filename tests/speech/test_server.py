"""OpenAI's endpoint, played by a process of its own: what it gives, and every way it fails."""

import json
import subprocess
import sys
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from tarl_jax.speech.server import SpeechServer
from tarl_jax.speech.synthesis import SpeechError, Voice

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
