"""The findings of `training.rank`, as a table of 80 columns and as JSON."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from tarl_jax.training.gradient_signal import Signal

FEW = 20  # mixed groups; with fewer the direction of the pass rate is mostly noise
CAVEAT = (
    "This ranks the gradient at the policy that played, and no training: it does not see how the"
    " policy then changes, what a way that points elsewhere (asymptotic cosine below 1) pays for in"
    " the long run, the length of episodes, or entropy."
)


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table. goals: the same against the direction of more goals done right."""

    way: str
    signal: Signal
    goals: Signal | None
    share: float  # of groups that teach anything
    needs: str


@dataclasses.dataclass(frozen=True)
class Ranking:
    """Rows by data-equivalent, best first; what the other ways lack; facts about the episodes."""

    rows: list[Row]
    left_out: dict[str, str]
    facts: dict[str, Any]

    @property
    def few(self) -> bool:
        return self.facts["mixed_groups"] < FEW

    def to_json(self) -> dict[str, Any]:
        """NaN, of what cannot be told, is null."""
        rows = [
            {k: _plain(v) for k, v in dataclasses.asdict(row.signal).items()} | {
                "way": row.way, "needs": row.needs, "groups_with_signal": row.share,
                "goals": None if row.goals is None
                else {k: _plain(v) for k, v in dataclasses.asdict(row.goals).items()},
            }
            for row in self.rows
        ]
        return {**self.facts, "rows": rows, "left_out": self.left_out}


def show(ranking: Ranking) -> None:
    """Prints it; plain, without lines and colours, where the output is no terminal."""
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal or console.width > 80:
        console.width = 80
    facts = ranking.facts
    console.print(
        f"{facts['groups']} groups of {facts['group_size']}, {facts['mixed_groups']} of them mixed;"
        f" pass rate {facts['pass_rate']:.3f}; {facts['judged']:.0%} of episodes judged"
        f" ({facts['judge']}); {facts['states']} states, {facts['cells']} with their actions;"
        f" {facts['groups_per_gradient']} groups a gradient, seed {facts['seed']}"
    )
    if odd := facts["episodes_left_out"]:
        console.print(f"left out: {odd} episodes in groups of another size")
    console.print(_table([(row, row.signal) for row in ranking.rows], console.is_terminal))
    if ranking.few:
        console.print(
            f"Only {facts['mixed_groups']} groups are mixed, so the direction of the pass rate is"
            " mostly noise. The same toward more goals that end right, where that can be told:"
        )
        other = [(row, row.goals) for row in ranking.rows if row.goals is not None]
        if other:
            other.sort(key=lambda pair: -np.nan_to_num(pair[1].equivalent, nan=-np.inf))
            console.print(_table(other, console.is_terminal))
        else:
            console.print("(it cannot: no diff of these episodes names records)")
    for name, why in ranking.left_out.items():
        console.print(f"left out: {name}: {why}", markup=False)
    console.print(CAVEAT)


def _table(rows: Sequence[tuple[Row, Signal]], terminal: bool) -> Any:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD if terminal else None, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("way", no_wrap=True)
    for name in ("cosine", "data-equiv.", "asympt.", "groups"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("needs", no_wrap=True)
    for row, s in rows:
        table.add_row(
            row.way, _pair(s.cosine, s.cosine_error, 3), _pair(s.equivalent, s.equivalent_error, 2),
            _number(s.asymptotic, 2), f"{row.share:.0%}", row.needs,
        )
    return table


def _pair(value: float, error: float, digits: int) -> str:
    return f"{_number(value, digits)} ± {_number(error, digits)}"


def _number(value: float, digits: int) -> str:
    return f"{value:.{digits}f}" if np.isfinite(value) else "-"


def _plain(value: float) -> float | None:
    return value if math.isfinite(value) else None
