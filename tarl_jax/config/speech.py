"""The knobs of spoken users, and what they refuse; docs/speech.md explains them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from tarl_jax.config.servers import check_server

# What an effect's number means, and its range; None: it takes no number.
EFFECTS: dict[str, tuple[str, float, float] | None] = {
    "white": ("signal-to-noise ratio in dB", -20.0, 60.0),
    "pink": ("signal-to-noise ratio in dB", -20.0, 60.0),
    "babble": ("signal-to-noise ratio in dB", -20.0, 60.0),
    "reverb": ("reverberation time (RT60) in seconds", 0.1, 5.0),
    "speed": ("factor of speed and pitch", 0.5, 2.0),
    "telephone": None,
    "loss": ("packets of 20 ms that are lost, in percent", 0.0, 50.0),
    "level": ("change of level in dB", -40.0, 20.0),
    "hesitant": ("chance of a hesitation between two words", 0.0, 0.5),
}
ENGINES = ("espeak", "piper", "server", "recordings")
SPEED = (0.5, 2.0)  # limits of Voice.speed
PITCH = (0.0, 1.0)  # limits of Voice.pitch


@dataclasses.dataclass(frozen=True)
class Effect:
    """One change of the sound, or of the words before they are said.

    Attributes:
      name: of EFFECTS.
      value: its number, 0 where it takes none.
      upper: the number is drawn from between both; None: it is `value`.
    """

    name: str
    value: float = 0.0
    upper: float | None = None


@dataclasses.dataclass(frozen=True)
class SpeechConfig:
    """Users who speak. `share=0`: none does.

    engine: "espeak" (eSpeak NG, in processes of its own), "piper" (neural voices, the same),
      "server" (OpenAI's /v1/audio/speech, on `base_url`) or "recordings" (a folder).
    share: of what users say, how much is spoken; drawn per "episode" or per "turn" (`per`).
    voices, speed, pitch: the voice of an episode is one of the names, with speed and pitch from
      between the two numbers. Speed 1 and pitch 0.5 are the engine's own; `pitch` is for espeak
      alone, `speed` for all but recordings. Before a name may stand another engine than `engine`,
      as in "piper:en_US-joe-medium".
    held_out: those of the voices, or the engines ("piper"), that speak in evaluations alone, where
      `eval.spoken` asks for them ("clean@held_out").
    piper_voices: a folder of NAME.onnx and NAME.onnx.json, beside the voice that is a package.
    acoustics: of each spoken episode, or turn (`acoustics_per`), one of these chains of effects,
      e.g. "clean", "telephone", "reverb:0.4+babble:15"; a number may be a range, "white:5..30",
      from which one is drawn. Empty: all clean.
    clean: share of these episodes or turns that stay clean nevertheless; a run may begin with more
      (`curriculum.clean`).
    cache_dir: keeps the clips of all but recordings, by content; empty: nowhere.
    timeout_seconds: for one clip, of one attempt.
    workers: processes of espeak and of piper, or clips in flight to a server.
    retries: after an attempt that a server failed.
    api_key_env: the environment variable that holds the server's key, where it needs one.
    audio_format: what the server is asked for; "wav", or "pcm" (16 bits without a header).
    pcm_rate: of "pcm", samples a second, where the server's Content-Type does not say ("rate=").
    recordings: the folder.
    """

    engine: str = "espeak"
    share: float = 0.0
    per: str = "episode"  # or "turn"
    voices: tuple[str, ...] = (
        "en-us", "en-us+f3", "en", "en+f2", "en-gb-x-rp", "en-gb-scotland+m3", "en-us-nyc",
        "en-029",
    )
    held_out: tuple[str, ...] = ()
    piper_voices: str = ""
    speed: tuple[float, ...] = (0.9, 1.15)
    pitch: tuple[float, ...] = (0.35, 0.65)
    acoustics: tuple[str, ...] = ()
    acoustics_per: str = "episode"  # or "turn"
    clean: float = 0.0
    cache_dir: str = "~/.cache/tarl_jax/speech"
    timeout_seconds: float = 30.0
    workers: int = 2
    retries: int = 3
    base_url: str = ""  # of the server
    model: str = ""  # that the server speaks with
    api_key_env: str = "OPENAI_API_KEY"
    audio_format: str = "wav"
    pcm_rate: int = 24_000
    recordings: str = ""

    @property
    def drawn_voices(self) -> tuple[str, ...]:
        """The voices that are not held out."""
        return tuple(name for name in self.voices if not self.holds_out(name))

    @property
    def held_out_voices(self) -> tuple[str, ...]:
        return tuple(name for name in self.voices if self.holds_out(name))

    def sound(self) -> dict[str, Any]:
        """The fields that what is heard depends on, the voices that are held out left away."""
        left = {"share", "per", "cache_dir", "timeout_seconds", "workers", "retries", "base_url",
                "api_key_env", "recordings", "piper_voices", "held_out"}
        if not self.acoustics:
            left |= {"acoustics_per", "clean"}
        fields = {k: v for k, v in dataclasses.asdict(self).items() if k not in left}
        return fields | {"voices": self.drawn_voices}

    def holds_out(self, name: str) -> bool:
        """Whether a voice is held out, by its name or with its engine."""
        return name in self.held_out or engine_of(name, self.engine)[0] in self.held_out


def engine_of(name: str, usual: str) -> tuple[str, str]:
    """The engine of a voice, `usual` where its name begins with none, and the name it has there."""
    engine, colon, own = name.partition(":")
    return (engine, own) if colon and engine in ENGINES else (usual, name)


def parse_chain(chain: str) -> tuple[Effect, ...]:
    """The effects of a chain such as "reverb:0.4+pink:15+telephone"; "clean" has none.

    Raises ValueError for an effect that does not exist, or a number, or the ends of a range of
    numbers ("white:5..30"), that is missing, surplus or out of its range.
    """
    if chain == "clean":
        return ()
    effects = []
    for part in chain.split("+"):
        name, colon, number = part.partition(":")
        if name not in EFFECTS:
            raise ValueError(f"no effect {name!r}: choose of {', '.join(EFFECTS)}, or clean")
        meaning = EFFECTS[name]
        if meaning is None:
            if colon:
                raise ValueError(f"{part!r}: {name} takes no number")
            effects.append(Effect(name))
            continue
        what, low, high = meaning
        least, dots, most = number.partition("..")
        try:
            value, upper = float(least), float(most) if dots else None
        except ValueError:
            value, upper = float("nan"), None
        if not low <= value <= (high if upper is None else upper) <= high:
            raise ValueError(f"{part!r}: write {name}:NUMBER or {name}:LEAST..MOST, the {what},"
                             f" from {low:g} to {high:g}")
        effects.append(Effect(name, value, upper))
    return tuple(effects)


def chain_of(effects: Sequence[Effect]) -> str:
    """The chain that `parse_chain` reads as these effects, whose numbers are drawn."""
    return "+".join(
        e.name if EFFECTS[e.name] is None else f"{e.name}:{e.value:g}" for e in effects
    ) or "clean"


def condition_of(condition: str, speech: SpeechConfig) -> tuple[str, tuple[str, ...]]:
    """(chain of effects, voices) of an entry of `eval.spoken`: CHAIN or CHAIN@WHO.

    WHO is "held_out", or voices and engines with commas between them; without it speak the voices
    that training hears. Raises ValueError for what `parse_chain` refuses, and where nobody speaks.
    """
    chain, at, who = condition.partition("@")
    parse_chain(chain)
    if not at:
        return chain, speech.drawn_voices
    wanted = set(who.split(","))
    voices = speech.held_out_voices if who == "held_out" else tuple(
        name for name in speech.voices if wanted & {name, engine_of(name, speech.engine)[0]}
    )
    if not voices:
        raise ValueError(f"nobody speaks after the @: write one of speech.voices, an engine of"
                         f" theirs, or held_out where speech.held_out names some, not {who!r}")
    return chain, voices


def check_speech(
    speech: SpeechConfig,
    require: Callable[[bool, str, Any, str], None],
    choice: Callable[[str, str, tuple[str, ...]], None],
) -> None:
    """Calls `require` and `choice` of `config.checks` for all fields, one by one and together."""
    choice("speech.engine", speech.engine, ENGINES)
    choice("speech.per", speech.per, ("episode", "turn"))
    choice("speech.acoustics_per", speech.acoustics_per, ("episode", "turn"))
    require(0 <= speech.clean <= 1, "speech.clean", speech.clean, "must be between 0 and 1")
    choice("speech.audio_format", speech.audio_format, ("wav", "pcm"))
    require(0 <= speech.share <= 1, "speech.share", speech.share, "must be between 0 and 1")
    require(speech.timeout_seconds > 0, "speech.timeout_seconds", speech.timeout_seconds,
            "must be above 0")
    require(8_000 <= speech.pcm_rate <= 192_000, "speech.pcm_rate", speech.pcm_rate,
            "must be between 8000 and 192000")
    require(speech.workers > 0, "speech.workers", speech.workers, "must be at least 1")
    require(speech.retries >= 0, "speech.retries", speech.retries, "must be at least 0")
    for name, (low, high) in (("speed", SPEED), ("pitch", PITCH)):
        value = getattr(speech, name)
        require(len(value) == 2 and low <= value[0] <= value[1] <= high, f"speech.{name}", value,
                f"expected the least and the largest, both from {low:g} to {high:g}")
    voiced = speech.engine == "recordings" or (speech.voices and all(speech.voices))
    require(bool(voiced), "speech.voices", speech.voices, "name at least one voice of the engine")
    engines = {engine_of(name, speech.engine)[0] for name in speech.voices} | {speech.engine}
    require(engines == {"recordings"} or "recordings" not in engines, "speech.voices",
            speech.voices, "recordings have no voices, and no other engine beside them")
    for name in speech.held_out:
        require(name in speech.voices or name in engines, "speech.held_out", name,
                "is neither one of speech.voices nor an engine of theirs")
    require(bool(speech.drawn_voices) or not voiced or speech.engine == "recordings",
            "speech.held_out", speech.held_out, "leaves no voice to train on: name fewer")
    babble = False
    for chain in speech.acoustics:
        try:
            babble |= any(effect.name == "babble" for effect in parse_chain(chain))
        except ValueError as error:
            require(False, "speech.acoustics", chain, str(error))
    if speech.engine == "recordings":
        require(bool(speech.recordings), "speech.recordings", speech.recordings,
                "name the folder for speech.engine = 'recordings'")
        require(not babble, "speech.acoustics", speech.acoustics,
                "babble is synthesised, which recordings are not: choose white or pink")
    check_server("speech", speech.base_url, speech.api_key_env, require)
    if "server" in engines:
        require(bool(speech.base_url), "speech.base_url", speech.base_url,
                "name the server, e.g. http://localhost:8000/v1")
        require(bool(speech.model), "speech.model", speech.model, "name the server's model")
        require(bool(speech.api_key_env), "speech.api_key_env", speech.api_key_env,
                "name the environment variable of the key; it may be unset")
