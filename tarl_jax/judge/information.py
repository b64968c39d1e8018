"""What a judge's words tell of the outcome: per note, and in bits per turn."""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Callable, Hashable, Sequence

import numpy as np
from jaxtyping import Float, Int

MAX_NOTES = 100  # beyond it notes are free text, and how often one comes says nothing
_DRAWS = 1000
_IDENTIFIER = re.compile(r"\S*\d\S*")


@dataclasses.dataclass(frozen=True)
class Remark:
    """What a judge said of one turn, and what became of it.

    Attributes:
      task: the turns of a task stand or fall together.
      right: whether the request that the turn belongs to ended right.
      note: without numbers and ids.
    """

    task: str
    right: bool
    score: int
    minor: bool
    note: str

    @property
    def grade(self) -> str:
        """"right", "neutral", "minor" or "major"."""
        return "minor" if self.minor else ("major", "neutral", "right")[self.score + 1]


@dataclasses.dataclass(frozen=True)
class Rate:
    """How often a grade, or a note of it, came, and on how many turns the request ended right."""

    grade: str
    note: str
    turns: int
    right: int


@dataclasses.dataclass(frozen=True)
class Bits:
    """Mutual information with the outcome, in bits per turn.

    draws: of the bootstrap over tasks, in which all judges of the same episodes draw alike.
    """

    value: float
    draws: Float[np.ndarray, " draws"]

    @property
    def error(self) -> float:
        """Standard error; NaN where there is only one task."""
        return float(self.draws.std(ddof=1)) if self.draws.size > 1 else float("nan")


def plain(note: str) -> str:
    """The note without words that hold a digit."""
    return " ".join(_IDENTIFIER.sub("", note).split())


def rates(remarks: Sequence[Remark]) -> list[Rate]:
    """By grade and note: grades from right to major, each in all (an empty note) and then its notes
    by how often they come.
    """
    found: list[Rate] = []
    for grade in ("right", "neutral", "minor", "major"):
        mine = [r for r in remarks if r.grade == grade]
        if not mine:
            continue
        found.append(Rate(grade, "", len(mine), sum(r.right for r in mine)))
        counts = collections.Counter(r.note for r in mine)
        right = collections.Counter(r.note for r in mine if r.right)
        found += [Rate(grade, note, count, right[note]) for note, count in counts.most_common()]
    return found


def bits(remarks: Sequence[Remark], of: Callable[[Remark], Hashable]) -> Bits:
    """What `of` a remark tells of whether the request ended right.

    I = H(of) + H(right) - H(of, right), each a plug-in estimate with the correction of Miller and
    Madow (1955), (occupied cells - 1) / (2 n) nats. Its error comes from drawing tasks anew.
    """
    labels = {label: i for i, label in enumerate(dict.fromkeys(map(of, remarks)))}
    tasks = {task: i for i, task in enumerate(sorted({r.task for r in remarks}))}
    counts = np.zeros((len(tasks), len(labels), 2), np.int64)
    for r in remarks:
        counts[tasks[r.task], labels[of(r)], int(r.right)] += 1
    if not remarks:
        return Bits(float("nan"), np.zeros(0))
    rng = np.random.default_rng(0)
    times = rng.multinomial(len(tasks), np.full(len(tasks), 1 / len(tasks)),
                            _DRAWS if len(tasks) > 1 else 0)
    draws = [mutual_information(np.tensordot(n, counts, 1)) for n in times]
    return Bits(mutual_information(counts.sum(axis=0)), np.array(draws))


def mutual_information(table: Int[np.ndarray, "labels outcomes"]) -> float:
    """In bits, of a table of counts; see `bits`."""
    return _entropy(table.sum(axis=1)) + _entropy(table.sum(axis=0)) - _entropy(table)


def _entropy(counts: Int[np.ndarray, ...]) -> float:
    occupied = counts[counts > 0]
    total = occupied.sum()
    shares = occupied / total
    return float((-(shares * np.log(shares)).sum() + (occupied.size - 1) / (2 * total)) / np.log(2))
