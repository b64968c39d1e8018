"""A folder of recordings answers for what was recorded, and names what was not."""

import json

import numpy as np
import pytest
import soundfile

from tarl_jax.speech.clips import save_clip
from tarl_jax.speech.recordings import Recordings, recording_name
from tarl_jax.speech.speakable import speakable
from tarl_jax.speech.synthesis import SpeechError, Voice, quantise

TEXT = "Cancel #W123."
CLIP = quantise(0.3 * np.random.default_rng(0).standard_normal(3000))
NOBODY = Voice("")


@pytest.fixture
def folder(tmp_path):
    save_clip(tmp_path / "one.wav", CLIP)
    return tmp_path


def manifest(folder, *entries):
    lines = [e if isinstance(e, str) else json.dumps(e) for e in entries]
    (folder / "manifest.jsonl").write_text("\n".join(lines), encoding="utf-8")


@pytest.mark.parametrize("asked", [TEXT, speakable(TEXT), "Cancel #W123. ###STOP###"])
def test_a_manifest_leads_to_the_file(folder, asked):
    manifest(folder, {"text": TEXT, "file": "one.wav"}, "")
    np.testing.assert_array_equal(Recordings(folder).say(asked, NOBODY), CLIP)


@pytest.mark.parametrize("ending", ["wav", "flac"])
def test_a_file_is_found_by_the_hash_of_its_text(folder, ending):
    save_clip(folder / f"{recording_name(TEXT)}.{ending}", CLIP)
    np.testing.assert_array_equal(Recordings(folder).say(speakable(TEXT), NOBODY), CLIP)


@pytest.mark.parametrize("listed", [True, False])
def test_a_missing_text_is_named(folder, listed):
    if listed:
        manifest(folder, {"text": TEXT, "file": "one.wav"})
    with pytest.raises(SpeechError, match="'Return it'") as caught:
        Recordings(folder).say("Return it", NOBODY)
    assert caught.value.kind == "missing"


def test_a_listed_file_that_is_missing_or_no_sound_is_named(folder):
    manifest(folder, {"text": "a", "file": "two.wav"}, {"text": "b", "file": "manifest.jsonl"})
    for text, kind in (("a", "missing"), ("b", "format")):
        with pytest.raises(SpeechError) as caught:
            Recordings(folder).say(text, NOBODY)
        assert caught.value.kind == kind


def test_samples_that_are_not_finite_are_found(folder):
    soundfile.write(folder / "nan.wav", np.append(CLIP, np.nan), 16_000, "FLOAT")
    manifest(folder, {"text": "a", "file": "nan.wav"})
    with pytest.raises(SpeechError, match="not_finite"):
        Recordings(folder).say("a", NOBODY)


@pytest.mark.parametrize("line", [
    "{", "[]", '{"text": "a"}', '{"text": 1, "file": "one.wav"}',
    '{"text": "a", "file": "one.wav"}\n{"text": "a", "file": "two.wav"}',
])
def test_a_wrong_manifest_names_its_line(folder, line):
    manifest(folder, line)
    with pytest.raises(ValueError, match=r"manifest\.jsonl:[12]: "):
        Recordings(folder)


def test_no_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder"):
        Recordings(tmp_path / "none")


@pytest.mark.parametrize("mark", ["\u2028", "\x85", "\u2029"])
def test_a_manifest_with_other_ends_of_lines_in_its_texts(folder, mark):
    line = json.dumps({"text": f"Hello.{mark}Bye.", "file": "one.wav"}, ensure_ascii=False)
    (folder / "manifest.jsonl").write_bytes(f"\ufeff{line}\r\n".encode())
    np.testing.assert_array_equal(Recordings(folder).say(f"Hello.{mark}Bye.", NOBODY), CLIP)
