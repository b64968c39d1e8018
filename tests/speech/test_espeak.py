"""eSpeak NG in processes of its own: the same samples every time, and every fault told."""

import os
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tarl_jax.models import audio_encoder
from tarl_jax.speech.espeak import Espeak
from tarl_jax.speech.pool import WorkerPool
from tarl_jax.speech.synthesis import MAX_CHARACTERS, SAMPLE_RATE, SpeechError, Voice

TEXT = "Please cancel order hash W one two three."
VOICE = Voice("en-us")


def failure(synthesiser, text=TEXT, voice=VOICE):
    with pytest.raises(SpeechError) as caught:
        synthesiser.say(text, voice)
    return caught.value


def test_a_clip_is_audible_speech_of_a_plausible_length(espeak):
    clip = espeak.say(TEXT, VOICE)
    assert clip.dtype == np.float32 and clip.ndim == 1
    assert 1.0 < len(clip) / SAMPLE_RATE < 5.0
    assert 0.1 < np.abs(clip).max() < 1.0
    np.testing.assert_array_equal(clip * 32768, np.rint(clip * 32768))


def test_the_sample_rate_is_the_encoders():
    assert SAMPLE_RATE == audio_encoder.SAMPLE_RATE


def test_the_same_text_has_the_same_samples_whenever_and_whatever_was_said_before(espeak):
    # Voices that breathe: eSpeak seeds the noise with the second in which it starts.
    voices = [VOICE, Voice("en+f2"), Voice("en-us+f3", 1.1, 0.4)]
    first = [espeak.say(TEXT, voice) for voice in voices]
    time.sleep(1.1)
    other = Espeak(timeout_seconds=120)
    other.say("Something else entirely.", voices[1])
    for synthesiser in (espeak, other):
        for voice, clip in zip(voices, first, strict=True):
            np.testing.assert_array_equal(synthesiser.say(TEXT, voice), clip)
    other.close()


def test_speed_pitch_and_accent_change_the_clip(espeak):
    plain = espeak.say(TEXT, VOICE)
    assert len(espeak.say(TEXT, Voice("en-us", speed=1.5))) < 0.8 * len(plain)
    assert fundamental(espeak.say(TEXT, Voice("en-us", pitch=1.0))) > 1.2 * fundamental(plain)
    assert not np.array_equal(espeak.say(TEXT, Voice("en-gb-scotland")), plain)


def fundamental(clip):
    """The strongest period between 70 and 400 Hz, by autocorrelation, in Hz."""
    spectrum = np.abs(np.fft.rfft(clip, 2 * len(clip))) ** 2
    correlation = np.fft.irfft(spectrum)
    shortest, longest = SAMPLE_RATE // 400, SAMPLE_RATE // 70
    return SAMPLE_RATE / (shortest + np.argmax(correlation[shortest:longest]))


def test_threads_share_the_workers():
    texts = [f"This is sentence {word}." for word in ("one", "two", "three", "four", "five")]
    synthesiser = Espeak(workers=2, timeout_seconds=120)
    with ThreadPoolExecutor(5) as threads:
        clips = list(threads.map(lambda text: synthesiser.say(text, VOICE), texts))
    assert len(synthesiser.pids) == 2
    for text, clip in zip(texts, clips, strict=True):
        np.testing.assert_array_equal(synthesiser.say(text, VOICE), clip)
    synthesiser.close()
    assert synthesiser.pids == []


@pytest.mark.parametrize("voice", ["xx", "en-us+nobody", ""])
def test_a_voice_that_does_not_exist_is_named(espeak, voice):
    error = failure(espeak, voice=Voice(voice))
    assert error.kind == "voice" and repr(voice) in str(error) and "try en-us" in str(error)


@pytest.mark.parametrize("text, kind", [
    ("", "text"), (" \n", "text"), ("a\0b", "text"), ("a" * (MAX_CHARACTERS + 1), "text"),
    ("...", "silent"),
])
def test_what_cannot_be_said_is_an_error(espeak, text, kind):
    assert failure(espeak, text).kind == kind


def test_markup_of_the_engine_is_only_text(espeak):
    # In SSML this would be a pause of ten seconds.
    assert len(espeak.say('Hi <break time="10s"/> you', VOICE)) / SAMPLE_RATE < 6


@pytest.mark.parametrize("field, value", [("speed", 0.1), ("speed", float("nan")), ("pitch", 2)])
def test_a_voice_beyond_its_limits_is_refused(field, value):
    with pytest.raises(ValueError, match=f"voice {field} = {value!r}: must be from"):
        Voice("en-us", **{field: value})


# ---- faults ---------------------------------------------------------------------------------

GOOD = """
    import json, sys
    for line in sys.stdin:
        samples = b"\\x00\\x20\\x00\\xe0" * 5000
        header = json.dumps({"rate": 22050, "bytes": len(samples)})
        sys.stdout.buffer.write(header.encode() + b"\\n" + samples)
        sys.stdout.buffer.flush()
"""
SAY = "import json, os, sys, time\nline = sys.stdin.readline()\n"
SLEEP = "\ntime.sleep(3600)"
ANSWER = "sys.stdout.write({!r}); sys.stdout.flush()"
FAULTS = {
    "hangs": ("timeout", SLEEP),
    "hangs amid its answer": (
        "timeout", ANSWER.format('{"rate": 22050, "bytes": 99}\nabc') + SLEEP),
    "hangs with a child": ("timeout", "os.fork()" + SLEEP),
    "exits": ("crashed", "sys.exit('the voice is gone')"),
    "dies": ("crashed", "os.kill(os.getpid(), 9)"),
    "dies amid its answer": ("crashed", ANSWER.format('{"rate": 22050, "bytes": 99}\nabc')),
    "closes its output": ("crashed", "os.close(1)" + SLEEP),
    "is silent": ("silent", ANSWER.format('{"rate": 22050, "bytes": 2000}\n' + "\0" * 2000)),
    "says nothing": ("silent", ANSWER.format('{"rate": 22050, "bytes": 0}\n') + SLEEP),
    "has another rate": ("rate", ANSWER.format('{"rate": 44100, "bytes": 4}\nabcd')),
    "has no rate": ("rate", ANSWER.format('{"bytes": 4}\nabcd')),
    "sends half a sample": ("format", ANSWER.format('{"rate": 22050, "bytes": 3}\nabc')),
    "answers in prose": ("format", ANSWER.format("Hello!\n")),
    "answers with a list": ("format", ANSWER.format("[]\n")),
    "never ends its line": ("format", ANSWER.format("x" * 100_000) + SLEEP),
}


def command(source):
    return (sys.executable, "-c", textwrap.dedent(source))


def gone(pid):
    """Whether no process of that group is left, not even a zombie."""
    try:
        os.killpg(pid, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.mark.parametrize("name", FAULTS)
def test_every_fault_of_a_worker_has_its_kind_and_leaves_no_process(name, monkeypatch):
    kind, source = FAULTS[name]
    groups = []
    kill = os.killpg

    def killed(group, signal):
        groups.append(group)
        kill(group, signal)

    monkeypatch.setattr(os, "killpg", killed)
    timeout = 1.0 if kind == "timeout" else 120.0
    synthesiser = Espeak(timeout_seconds=timeout, command=command(SAY + source))
    error = failure(synthesiser)
    assert error.kind == kind, error
    if name == "exits":
        assert "the voice is gone" in str(error)
    synthesiser.close()
    assert synthesiser.pids == []
    monkeypatch.undo()
    assert groups
    for group in groups:
        with pytest.raises(ChildProcessError):  # waited for
            os.waitpid(group, os.WNOHANG)


def test_after_a_crash_the_next_clip_has_a_new_worker(tmp_path):
    once = f"""
        import os, sys
        if not os.path.exists({str(tmp_path / "died")!r}):
            open({str(tmp_path / "died")!r}, "w").close()
            os.abort()
    """
    source = textwrap.dedent(once) + textwrap.dedent(GOOD)
    synthesiser = Espeak(timeout_seconds=120, command=(sys.executable, "-c", source))
    assert failure(synthesiser).kind == "crashed"
    assert len(synthesiser.say(TEXT, VOICE)) > 1000
    synthesiser.close()


def test_a_workers_own_error_keeps_the_worker():
    source = """
        import json, sys
        for line in sys.stdin:
            print(json.dumps({"error": "voice", "message": "no such voice"}), flush=True)
    """
    pool = WorkerPool(command(source), workers=1, timeout_seconds=120)
    for _ in range(2):
        with pytest.raises(SpeechError, match="voice: no such voice"):
            pool.ask({})
        pids = pool.pids
    assert pool.pids == pids and len(pids) == 1
    pool.close()
    assert gone(pids[0])


def test_workers_end_with_the_process_that_started_them(tmp_path):
    # Killed without a chance to tidy up: the workers see the end of their input.
    source = """
        import os
        from tarl_jax.speech.espeak import Espeak
        from tarl_jax.speech.synthesis import Voice
        espeak = Espeak(timeout_seconds=120)
        espeak.say("Hello.", Voice("en-us"))
        print(espeak.pids[0], flush=True)
        os.kill(os.getpid(), 9)
    """
    done = subprocess.run(command(source), capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
    assert done.returncode == -9, done.stderr
    for _ in range(12_000):  # it is no child of this process: there is nothing to wait on
        if gone(int(done.stdout)):
            return
        subprocess.run(["sleep", "0.01"], check=True)
    pytest.fail("the worker outlives its parent")
