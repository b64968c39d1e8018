"""A process that speaks, with eSpeak NG or with Piper: `python -P worker.py espeak|piper`.

What an engine says depends on what it has said before: eSpeak even once it is initialised anew, and
voices that breathe, such as "en+f2", on the second in which it started; Piper draws random numbers
for every clip. So this process makes the engine ready, under one random seed, never speaks, and
forks for every clip: each child starts from the same memory. Nothing of tarl_jax is imported, which
keeps forks cheap, and Piper, whose licence is the GPL, apart from us.
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

_SEED = 1
_SYNCHRONOUS = 2  # AUDIO_OUTPUT_SYNCHRONOUS of speak_lib.h: samples go to a callback, no thread
_DO_NOT_EXIT = 0x8000
_UTF8 = 1
_RATE, _PITCH = 1, 3
_WORDS_PER_MINUTE = 175  # eSpeak's own
Request = dict[str, Any]


class Espeak:
    """eSpeak NG of the package `espeakng_loader`."""

    def __init__(self) -> None:
        import espeakng_loader

        self._library = ctypes.CDLL(espeakng_loader.get_library_path())
        self._variants = Path(espeakng_loader.get_data_path()) / "voices" / "!v"
        data = espeakng_loader.get_data_path().encode()
        self._rate = self._library.espeak_Initialize(_SYNCHRONOUS, 0, data, _DO_NOT_EXIT)
        if self._rate <= 0:
            sys.exit(f"eSpeak NG did not start: espeak_Initialize returned {self._rate}")

    def ready(self, request: Request) -> int:
        """Raises LookupError for a variant that does not exist: eSpeak would speak without."""
        variant = request["voice"].partition("+")[2]
        if variant and not (self._variants / variant).is_file():
            raise LookupError(self.no_voice(request))
        return self._rate

    def no_voice(self, request: Request) -> str:
        return f"eSpeak NG has no voice {request['voice']!r}; try en-us, en or en-us+f3"

    def say(self, request: Request) -> bytes:
        chunks: list[bytes] = []

        @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)
        def collect(samples: int | None, count: int, events: int | None) -> int:
            if samples and count:
                chunks.append(ctypes.string_at(samples, 2 * count))
            return 0

        library = self._library
        library.espeak_ng_SetRandSeed(ctypes.c_long(_SEED))  # it has taken the time
        library.espeak_SetSynthCallback(collect)
        if library.espeak_SetVoiceByName(request["voice"].encode()):
            return b""
        library.espeak_SetParameter(_RATE, round(_WORDS_PER_MINUTE * request["speed"]), 0)
        library.espeak_SetParameter(_PITCH, round(99 * request["pitch"]), 0)
        text = request["text"].encode()
        library.espeak_Synth(text, ctypes.c_size_t(len(text) + 1), 0, 1, 0, _UTF8, None, None)
        # Never nothing: what stays silent is not a missing voice.
        return b"".join(chunks) or bytes(2)


class Piper:
    """Piper's voices, each a network that is loaded when it is first asked for.

    One thread each: a pool of threads would not outlive a fork.
    """

    def __init__(self) -> None:
        import onnxruntime
        from piper import config, voice

        onnxruntime.set_default_logger_severity(3)  # errors
        onnxruntime.set_seed(_SEED)  # of networks loaded from now on
        self._onnx, self._config, self._voice = onnxruntime, config, voice
        self._voices: dict[str, Any] = {}

    def ready(self, request: Request) -> int:
        """Raises LookupError for a model that cannot be loaded."""
        model = request["model"]
        if model not in self._voices:
            options = self._onnx.SessionOptions()
            options.intra_op_num_threads = options.inter_op_num_threads = 1
            try:
                found = json.loads(Path(f"{model}.json").read_text("utf-8"))
                self._voices[model] = self._voice.PiperVoice(
                    config=self._config.PiperConfig.from_dict(found),
                    session=self._onnx.InferenceSession(
                        model, sess_options=options, providers=["CPUExecutionProvider"]
                    ),
                )
            except Exception as error:  # onnxruntime's have no base of their own
                reason = " ".join(str(error).split())[:300]
                raise LookupError(f"{model}: no voice of Piper: {reason}") from error
        return self._voices[model].config.sample_rate

    def no_voice(self, request: Request) -> str:
        return f"{request['model']}: has no speaker {request['speaker']!r}"

    def say(self, request: Request) -> bytes:
        voice, speaker = self._voices[request["model"]], request["speaker"]
        known = voice.config.speaker_id_map
        if speaker.isdecimal():
            number = int(speaker)
        elif speaker:
            number = known.get(speaker, -1)
        else:
            number = voice.config.default_speaker_id
        if not 0 <= number < max(voice.config.num_speakers, 1):
            return b""
        settings = self._config.SynthesisConfig(
            speaker_id=number if voice.config.num_speakers > 1 else None,
            length_scale=voice.config.length_scale / request["speed"],
        )
        text = request["text"].replace("[[", "[ [")  # which would begin phonemes
        return b"".join(c.audio_int16_bytes for c in voice.synthesize(text, settings)) or bytes(2)


def main() -> None:
    engine = {"espeak": Espeak, "piper": Piper}[sys.argv[1]]()
    for line in sys.stdin.buffer:
        header, payload = _answer(engine, json.loads(line))
        sys.stdout.buffer.write(json.dumps(header).encode() + b"\n" + payload)
        sys.stdout.buffer.flush()


def _answer(engine: Any, request: Request) -> tuple[dict[str, Any], bytes]:
    try:
        rate = engine.ready(request)
    except LookupError as error:
        return {"error": "voice", "message": str(error)}, b""
    samples, code, said = _in_child(engine, request)
    if code:
        message = f"{sys.argv[1]} ended with {code}. {said}".strip()
        return {"error": "crashed", "message": message}, b""
    if not samples:
        return {"error": "voice", "message": engine.no_voice(request)}, b""
    return {"rate": rate, "bytes": len(samples)}, samples


def _in_child(engine: Any, request: Request) -> tuple[bytes, int, str]:
    """(samples, exit code, the last line of what went wrong)."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read_end)
        code = 1
        with os.fdopen(write_end, "wb") as pipe:
            try:
                # Should nobody be left to kill it.
                signal.alarm(math.ceil(request["timeout_seconds"]) + 1)
                pipe.write(engine.say(request))
                pipe.flush()
                code = 0
            except BaseException as error:
                pipe.write(traceback.format_exception_only(error)[-1].strip()[:300].encode())
                pipe.flush()
            finally:
                os._exit(code)
    os.close(write_end)
    with os.fdopen(read_end, "rb") as pipe:
        written = pipe.read()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return (b"", code, written.decode(errors="replace") if code == 1 else "") if code else (
        written, 0, "")


if __name__ == "__main__":
    main()
