"""A process that speaks with eSpeak NG: the command behind `espeak.Espeak`.

What eSpeak says depends on what it has said before, even once it is initialised anew, and voices
that breathe, such as "en+f2", on the second in which it started. So this process initialises it,
never speaks, and forks for every clip: each child starts from the same memory, and from the same
random seed. Only the standard library and `espeakng_loader` are imported, which keeps forks cheap.
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import signal
import sys
from pathlib import Path
from typing import Any

_SYNCHRONOUS = 2  # AUDIO_OUTPUT_SYNCHRONOUS of speak_lib.h: samples go to a callback, no thread
_DO_NOT_EXIT = 0x8000
_UTF8 = 1
_RATE, _PITCH = 1, 3
_WORDS_PER_MINUTE = 175  # eSpeak's own


def main() -> None:
    import espeakng_loader

    library = ctypes.CDLL(espeakng_loader.get_library_path())
    data = espeakng_loader.get_data_path()
    rate = library.espeak_Initialize(_SYNCHRONOUS, 0, data.encode(), _DO_NOT_EXIT)
    if rate <= 0:
        sys.exit(f"eSpeak NG did not start: espeak_Initialize returned {rate}")
    for line in sys.stdin.buffer:
        header, payload = _in_child(library, Path(data), rate, json.loads(line))
        sys.stdout.buffer.write(json.dumps(header).encode() + b"\n" + payload)
        sys.stdout.buffer.flush()


def _in_child(
    library: ctypes.CDLL, data: Path, rate: int, request: dict[str, Any]
) -> tuple[dict[str, Any], bytes]:
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.close(read_end)
            # Should nobody be left to kill it.
            signal.alarm(math.ceil(request["timeout_seconds"]) + 1)
            with os.fdopen(write_end, "wb") as pipe:
                pipe.write(_say(library, request))
            code = 0
        finally:
            os._exit(code)
    os.close(write_end)
    with os.fdopen(read_end, "rb") as pipe:
        samples = pipe.read()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code:
        return {"error": "crashed", "message": f"eSpeak NG ended with {code}"}, b""
    variant = request["voice"].partition("+")[2]
    # An unknown variant is not an error to eSpeak: it speaks without.
    if not samples or (variant and not (data / "voices" / "!v" / variant).is_file()):
        message = f"eSpeak NG has no voice {request['voice']!r}; try en-us, en or en-us+f3"
        return {"error": "voice", "message": message}, b""
    return {"rate": rate, "bytes": len(samples)}, samples


def _say(library: ctypes.CDLL, request: dict[str, Any]) -> bytes:
    """16-bit samples; nothing where there is no such voice."""
    chunks: list[bytes] = []

    @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)
    def collect(samples: int | None, count: int, events: int | None) -> int:
        if samples and count:
            chunks.append(ctypes.string_at(samples, 2 * count))
        return 0

    library.espeak_ng_SetRandSeed(ctypes.c_long(1))  # it has taken the time
    library.espeak_SetSynthCallback(collect)
    if library.espeak_SetVoiceByName(request["voice"].encode()):
        return b""
    library.espeak_SetParameter(_RATE, round(_WORDS_PER_MINUTE * request["speed"]), 0)
    library.espeak_SetParameter(_PITCH, round(99 * request["pitch"]), 0)
    text = request["text"].encode()
    library.espeak_Synth(text, ctypes.c_size_t(len(text) + 1), 0, 1, 0, _UTF8, None, None)
    # Never nothing: what stays silent is not a missing voice.
    return b"".join(chunks) or bytes(2)


if __name__ == "__main__":
    main()
