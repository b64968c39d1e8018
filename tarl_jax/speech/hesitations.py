"""What people say beside what they mean: "uh", words twice, asides to others, spelled names."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

from tarl_jax.config.speech import Effect

_FILLERS = ("uh", "um", "er", "hmm", "you know")
_ASIDES = (
    "sorry, just a moment", "hold on, please", "not now, I am on the phone", "where was I",
)
_KINDS, _OFTEN = ("filler", "restart", "aside"), (6, 3, 1)
_SPELLED = 0.3  # of names
_NAME = re.compile(r"(?<!^)(?<![.!?] )\b[A-Z][a-z]{2,} [A-Z][a-z]{2,}\b")
# Said twice, these would be another number or address.
_COUNTS = frozenset(
    "zero one two three four five six seven eight nine hash at dot underscore dash plus".split()
)


def words_of(text: str, effects: Sequence[Effect], seed: int) -> str:
    """What is said of a speakable text: with hesitations where an effect is "hesitant"."""
    for effect in effects:
        if effect.name == "hesitant":
            text = hesitate(text, effect.value, random.Random(f"hesitations-{seed}"))
    return text


def hesitate(text: str, chance: float, rng: random.Random) -> str:
    """The text as somebody says it who hesitates with that chance between any two words.

    All of the text stays, in its order. A name in the midst of a sentence may be spelled behind it.
    """
    if chance:
        text = _NAME.sub(lambda name: _spelled(name, rng), text)
    said: list[str] = []
    for word in text.split(" "):
        if said and rng.random() < chance:
            _hesitate(said, rng)
        said.append(word)
    return " ".join(said)


def _hesitate(said: list[str], rng: random.Random) -> None:
    (kind,) = rng.choices(_KINDS, _OFTEN)
    # Back to where the clause began, two words at most.
    again: list[str] = []
    while len(again) < min(2, len(said)) and said[-1 - len(again)][-1:].isalnum():
        again.insert(0, said[-1 - len(again)])
    if said[-1][-1:].isalnum():
        said[-1] += ","
    if kind == "restart" and again and not any(_counts(word) for word in again):
        said += again
    elif kind == "aside":
        said.append(f"{rng.choice(_ASIDES)},")
    else:
        said.append(f"{rng.choice(_FILLERS)},")


def _counts(word: str) -> bool:
    return (len(word) == 1 and word not in "aI") or word.lower() in _COUNTS


def _spelled(name: re.Match[str], rng: random.Random) -> str:
    if rng.random() >= _SPELLED:
        return name.group()
    letters = ", ".join(" ".join(part.upper()) for part in name.group().split())
    comma = "," if name.string[name.end() : name.end() + 1].isspace() else ""
    return f"{name.group()}, {letters}{comma}"
