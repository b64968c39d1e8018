"""How far two judges, or two askings of one, agree on the same turns."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

SCORES = (-1, 0, 1)
EVERY = range(1, 10**9)
# Numbers of turns, or lengths, that are looked at together.
BINS = (range(1, 2), range(2, 4), range(4, 8), range(8, 16), range(16, EVERY.stop))

Scores = Sequence[int] | None  # of an episode's turns; None: the judge abstained
Table = Int[np.ndarray, "3 3"]


@dataclasses.dataclass(frozen=True)
class Agreement:
    """Attributes:
    table: [3, 3] turns by the first judge's score (row) and the second's (column), in order of
      SCORES.
    """

    table: Table

    @property
    def turns(self) -> int:
        return int(self.table.sum())

    @property
    def share(self) -> float:
        """Of turns with equal scores; NaN without turns."""
        return float(np.trace(self.table) / self.turns) if self.turns else float("nan")

    @property
    def kappa(self) -> float:
        return cohens_kappa(self.table)


def cohens_kappa(table: Int[np.ndarray, "n n"]) -> float:
    """(p_o - p_e) / (1 - p_e): agreement beyond that of judges who score independently.

    p_o is the share of equal scores, p_e what it would be if each judge gave its scores as often
    as it does, but at random. Source: Cohen 1960. NaN where that is 1 (both give one and the same
    score always) or the table is empty.
    """
    total = table.sum()
    if total == 0:
        return float("nan")
    observed = np.trace(table) / total
    expected = float(table.sum(axis=0) @ table.sum(axis=1)) / total**2
    return float((observed - expected) / (1 - expected)) if expected < 1 else float("nan")


def agreement(
    first: Sequence[Scores],
    second: Sequence[Scores],
    numbers: range = EVERY,
    lengths: range = EVERY,
) -> Agreement:
    """Over the turns of episodes that both have judged.

    numbers: of the turns that count, from 1. lengths: turns of the episodes that count.
    Raises ValueError for judgements of different lengths.
    """
    table = np.zeros((3, 3), int)
    for a, b in zip(first, second, strict=True):
        if a is None or b is None or len(a) not in lengths:
            continue
        for number, (x, y) in enumerate(zip(a, b, strict=True), 1):
            if number in numbers:
                table[SCORES.index(x), SCORES.index(y)] += 1
    return Agreement(table)


def by_position(first: Sequence[Scores], second: Sequence[Scores]) -> dict[str, Agreement]:
    """By the number of the turn, from 1."""
    return {_name(r): agreement(first, second, numbers=r) for r in BINS}


def by_length(first: Sequence[Scores], second: Sequence[Scores]) -> dict[str, Agreement]:
    """By the turns of the episode."""
    return {_name(r): agreement(first, second, lengths=r) for r in BINS}


def consistency(askings: Sequence[Sequence[Scores]]) -> Agreement:
    """Of one judge that was asked several times: the tables of all ordered pairs, added up.

    Its kappa takes both margins to be the judge's own.
    """
    tables = [agreement(a, b).table for a, b in itertools.permutations(askings, 2)]
    return Agreement(np.sum(tables, axis=0) if tables else np.zeros((3, 3), int))


def _name(numbers: range) -> str:
    if numbers.stop == EVERY.stop:
        return f"{numbers.start}+"
    return f"{numbers.start}" if len(numbers) == 1 else f"{numbers.start}-{numbers[-1]}"
