"""`python -m tarl_jax.speech`: a sound file, or one line that says why not."""

import os
import subprocess
import sys

import numpy as np
import pytest

from tarl_jax.speech.__main__ import main
from tarl_jax.speech.clips import load_clip
from tarl_jax.speech.synthesis import Voice


def test_the_command_writes_what_the_text_sounds_like(tmp_path, espeak):
    out = tmp_path / "cancel.flac"
    done = subprocess.run(
        [sys.executable, "-m", "tarl_jax.speech", "Cancel #W12.", f"--out={out}", "--voice=en+f2"],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("en+f2, clean: Cancel hash W one two.\n")
    expected = espeak.say("Cancel hash W one two.", Voice("en+f2"))
    np.testing.assert_array_equal(load_clip(out), expected)


def test_effects_are_applied_in_the_order_of_the_world(tmp_path, capsys):
    out = tmp_path / "a.wav"
    options = ["--telephone", "--noise=10", "--kind=white", "--reverb=0.3", "--tempo=1.1"]
    assert main(["Hello.", f"--out={out}", *options]) == 0
    assert "speed:1.1+reverb:0.3+white:10.0+telephone: Hello." in capsys.readouterr().out
    assert len(load_clip(out)) > 0.3 * 16_000


@pytest.mark.parametrize("options, message", [
    (["--voice=xx"], "no voice 'xx'"),
    (["--noise=99"], "from -20 to 60"),
    (["--speed=9"], "voice speed = 9.0"),
    (["--out=a.mp3"], "must end in .wav or .flac"),
    (["--engine=server"], "config.speech.base_url = '': name the server"),
])
def test_bad_input_is_one_line(tmp_path, monkeypatch, capsys, options, message):
    monkeypatch.chdir(tmp_path)
    assert main(["Hello.", *options]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
