"""Any user of the sandbox, speaking."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Mapping
from typing import Any

from tarl_jax.config.speech import SpeechConfig, chain_of
from tarl_jax.sandbox.dialogue import HasTools, User
from tarl_jax.sandbox.user import Reply
from tarl_jax.speech.acoustics import draw_effects
from tarl_jax.speech.hesitations import words_of
from tarl_jax.speech.service import Speech
from tarl_jax.speech.speakable import speakable
from tarl_jax.speech.synthesis import draw_voice


class SpokenUser:
    """Says, by chance, what `user` writes; the user itself notices nothing.

    Voice, acoustics and what is spoken are drawn from `seed`; episodes of one group may be given
    the same, so that they hear the same voice. A reply's `info` gets "spoken", {"voice", "speed",
    "pitch", "acoustics"}, where it is spoken, and "words" there, where more is said than written.
    What leaves nothing to say, like a bare end of the
    conversation, stays text.

    Attributes:
      opening_reply: the opening with its clip; None before `opening`.
    """

    def __init__(self, user: User, speech: Speech, config: SpeechConfig, seed: int):
        self.opening_reply: Reply | None = None
        self._user = user
        self._speech = speech
        self._config = config
        self._rng = random.Random(f"spoken-{seed}")
        self.voice = draw_voice(config, self._rng)
        self._seed, self._turn = seed, 0
        self._episode_speaks = self._rng.random() < config.share

    @property
    def index(self) -> int | None:
        """The request under discussion, where the user has such a thing."""
        return getattr(self._user, "index", None)

    def take(self, act: Callable[[str, Mapping[str, Any]], str]) -> None:
        """Gives the user its tools, where it has a use for them."""
        if isinstance(self._user, HasTools):
            self._user.take(act)

    def opening(self) -> str:
        """The text of the first message; `opening_reply` has its sound."""
        self.opening_reply = self._speak(Reply(self._user.opening(), {}))
        return self.opening_reply.text

    def reply(self, message: str) -> Reply:
        """The user's reply, the same text, with its clip where it is spoken."""
        return self._speak(self._user.reply(message))

    def _speak(self, reply: Reply) -> Reply:
        # Both are drawn in every turn, so that no turn depends on what was said before it.
        turn_speaks, seed = self._rng.random() < self._config.share, self._rng.getrandbits(32)
        turn = f"-{self._turn}" if self._config.acoustics_per == "turn" else ""
        effects = draw_effects(self._config, random.Random(f"acoustics-{self._seed}{turn}"))
        self._turn += 1
        speaks = self._episode_speaks if self._config.per == "episode" else turn_speaks
        text = speakable(reply.text)
        if not speaks or not any(c.isalnum() for c in text):
            return reply
        spoken = {
            "voice": self.voice.name, "speed": self.voice.speed, "pitch": self.voice.pitch,
            "acoustics": chain_of(effects),
        }
        words = words_of(text, effects, seed)
        if words != text:
            spoken["words"] = words
        clip = self._speech.submit(text, self.voice, effects, seed)
        return dataclasses.replace(reply, info={**reply.info, "spoken": spoken}, clip=clip)
