"""Recorded users: a folder of sound files in place of a synthesiser."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from tarl_jax.config import InputError, MissingFileError
from tarl_jax.config.plain import loads, read_lines
from tarl_jax.speech.clips import load_clip
from tarl_jax.speech.speakable import speakable
from tarl_jax.speech.synthesis import SpeechError, Voice, check_text

MANIFEST = "manifest.jsonl"
ENDINGS = (".wav", ".flac")


def recording_name(text: str) -> str:
    """The name, without its ending, under which a folder without a manifest holds a text."""
    return hashlib.sha256(speakable(text).encode()).hexdigest()


class Recordings:
    """Looks each text up; a `Synthesiser` whose voice is whoever was recorded.

    The folder holds `manifest.jsonl`, lines of {"text": …, "file": …}, or else files named
    `recording_name(text)` with .wav or .flac. A text is found as it is written or as it is spoken
    (`speakable`). Raises ValueError for a manifest that is wrong, FileNotFoundError for no folder.
    """

    def __init__(self, folder: Path):
        if not folder.is_dir():
            raise MissingFileError(f"speech.recordings = {str(folder)!r}: there is no such folder")
        self.engine = f"recordings {folder}"
        self._folder = folder
        manifest = folder / MANIFEST
        self._files = _read(manifest) if manifest.exists() else None

    def say(self, text: str, voice: Voice) -> np.ndarray:
        """The clip. Raises SpeechError, of kind "missing" where nobody recorded the text."""
        check_text(text)
        path = self._find(text)
        if not path.exists():
            raise SpeechError("missing", f"{text!r}: {path} does not exist")
        return load_clip(path)

    def version(self, voice: Voice) -> str:
        """The same for every voice."""
        return self.engine

    def close(self) -> None:
        """Nothing runs."""

    def _find(self, text: str) -> Path:
        if self._files is not None:
            if speakable(text) not in self._files:
                where = self._folder / MANIFEST
                raise SpeechError("missing", f"no line of {where} has the text {text!r}")
            return self._folder / self._files[speakable(text)]
        name = recording_name(text)
        for ending in ENDINGS:
            if (self._folder / f"{name}{ending}").exists():
                return self._folder / f"{name}{ending}"
        raise SpeechError(
            "missing", f"no recording of {text!r} in {self._folder}: record it as {name}.wav"
        )


def _read(manifest: Path) -> dict[str, str]:
    files: dict[str, str] = {}
    for where, line in read_lines(manifest):
        try:
            entry = loads(line)
            text, file = entry["text"], entry["file"]
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(
                f'{where}: {line[:80]!r}: expected {{"text": …, "file": …}}'
            ) from error
        if not isinstance(text, str) or not isinstance(file, str):
            raise InputError(f"{where}: text and file must be strings")
        if files.setdefault(speakable(text), file) != file:
            raise InputError(f"{where}: the text {text!r} has two files")
    return files
