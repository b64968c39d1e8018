"""`python -m tarl_jax.speech "text" --out=file.wav`: hear what a spoken user says."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tarl_jax.config import InputError
from tarl_jax.config.speech import SpeechConfig, parse_chain

_EXAMPLES = """\
examples:
  python -m tarl_jax.speech "Please cancel order #W123." --out=cancel.wav
  python -m tarl_jax.speech "My email is ada.li@mail.com" --voice=en-gb-x-rp+f3 --telephone
  python -m tarl_jax.speech "Yes, please." --reverb=0.6 --noise=10 --kind=babble --seed=3
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    default = SpeechConfig()
    p = argparse.ArgumentParser(
        "python -m tarl_jax.speech",
        description="Speak a text as the users of a run do, and write it as a sound file.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("text")
    p.add_argument("--out", type=Path, default=Path("speech.wav"), metavar="FILE",
                   help="a .wav or .flac file (default: speech.wav)")
    p.add_argument("--voice", default=default.voices[0], help="default: %(default)s")
    p.add_argument("--speed", type=float, default=1.0, help="factor, 0.5 to 2")
    p.add_argument("--pitch", type=float, default=0.5, help="0 to 1; espeak only")
    p.add_argument("--as-written", action="store_true",
                   help="leave ids, e-mails and money to the engine")
    p.add_argument("--tempo", type=float, metavar="FACTOR",
                   help="play faster or slower, which moves the pitch too")
    p.add_argument("--reverb", type=float, metavar="SECONDS", help="a room of that RT60")
    p.add_argument("--noise", type=float, metavar="DB", help="noise at that signal-to-noise ratio")
    p.add_argument("--kind", choices=("white", "pink", "babble"), default="pink",
                   help="of the noise (default: pink)")
    p.add_argument("--hesitant", type=float, metavar="CHANCE",
                   help="of a hesitation between two words")
    p.add_argument("--level", type=float, metavar="DB", help="quieter or louder")
    p.add_argument("--loss", type=float, metavar="PERCENT", help="of packets of 20 ms")
    p.add_argument("--telephone", action="store_true", help="8 kHz, 300 to 3,400 Hz, mu-law")
    p.add_argument("--seed", type=int, default=0, help="of noise and room")
    p.add_argument("--engine", choices=("espeak", "piper", "server"), default="espeak")
    p.add_argument("--piper-voices", default="", metavar="FOLDER", help="of Piper's voices")
    p.add_argument("--base-url", default="", help="of the server, e.g. http://localhost:8000/v1")
    p.add_argument("--model", default="", help="of the server")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code: 0, or 2 where nothing was written."""
    args = parser().parse_args(argv)
    from tarl_jax.config import ConfigError, from_config_dict
    from tarl_jax.speech.clips import save_clip
    from tarl_jax.speech.service import Speech
    from tarl_jax.speech.speakable import speakable
    from tarl_jax.speech.synthesis import SAMPLE_RATE, SpeechError, Voice

    parts = (
        args.hesitant is not None and f"hesitant:{args.hesitant}",
        args.tempo is not None and f"speed:{args.tempo}",
        args.reverb is not None and f"reverb:{args.reverb}",
        args.noise is not None and f"{args.kind}:{args.noise}",
        args.level is not None and f"level:{args.level}",
        args.telephone and "telephone",
        args.loss is not None and f"loss:{args.loss}",
    )
    chain = "+".join(part for part in parts if part) or "clean"
    try:
        if args.out.suffix not in (".wav", ".flac"):
            raise InputError(f"--out={args.out}: the name must end in .wav or .flac")
        config = from_config_dict({"speech": {
            "engine": args.engine, "base_url": args.base_url, "model": args.model,
            "cache_dir": "", "workers": 1, "piper_voices": args.piper_voices,
            **({} if args.engine == "espeak" else {"voices": (args.voice,)}),
        }}).speech
        text = args.text if args.as_written else speakable(args.text)
        voice = Voice(args.voice, args.speed, args.pitch)
        with Speech.from_config(config) as speech:
            clip = speech.say(text, voice, parse_chain(chain), args.seed)
        save_clip(args.out, clip)
    except (ConfigError, SpeechError, ValueError, OSError) as error:
        print(f"tarl_jax.speech: {error}", file=sys.stderr)
        return 2
    print(f"{args.out}: {len(clip) / SAMPLE_RATE:.2f} s, {voice.name}, {chain}: {text}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
