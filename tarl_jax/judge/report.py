"""The findings of `judge.calibrate` as tables and as a picture."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tarl_jax.judge.agreement import SCORES, Agreement, Scores, agreement, by_length, by_position
from tarl_jax.judge.incentive import Correlation, Rate
from tarl_jax.judge.information import MAX_NOTES, Bits
from tarl_jax.judge.information import Rate as NoteRate
from tarl_jax.runs.curves import BLUE, GREEN, GREY, RED, STYLE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_NAMES = [f"{score:+d}" if score else "0" for score in SCORES]


@dataclasses.dataclass(frozen=True)
class Opinion:
    """What one judge says, and what it would teach.

    Attributes:
      name: as it was given.
      scores: per episode.
      passed: success where no turn has a -1, and where one has.
      incentives: by denominator ("expert", "taken"): over all groups, over those where all fail.
      itself: agreement among repeated askings; None where it was asked once.
      notes: how often each grade and note came, and how often the request ended right.
      by_grade, by_note: what these tell of that.
    """

    name: str
    scores: list[Scores]
    passed: tuple[Rate, Rate]
    incentives: dict[str, tuple[Correlation, Correlation]]
    itself: Agreement | None
    notes: list[NoteRate]
    by_grade: Bits
    by_note: Bits

    @property
    def many_notes(self) -> bool:
        """Whether the notes are free text, of which no rates can be given."""
        return len({rate.note for rate in self.notes}) > MAX_NOTES

    def warnings(self) -> list[str]:
        """Where the reward would pay for giving up."""
        found = []
        for denominator, (_, failing) in self.incentives.items():
            if failing.value < 0:
                sure = "pays" if failing.high < 0 else "may pay"
                found.append(
                    f"{self.name}: with reward.denominator = {denominator} the reward {sure} for"
                    f" giving up: where all of a group fail, it correlates {failing.value:+.2f}"
                    f" ({failing.low:+.2f} to {failing.high:+.2f}) with the share of the task that"
                    " was done"
                )
        return found


def show(opinions: Sequence[Opinion], success: Sequence[bool | None]) -> None:
    """Prints the tables, and the warnings last."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    console.print(f"{len(success)} episodes, {sum(map(bool, success))} of them passed")
    table = Table("judge", "judged", "P(success | no -1)", "P(success | a -1)",
                  "asked again: same, kappa")
    paid = Table("judge", "denominator", "in all groups", "where all of a group fail",
                 title="Correlation of the turns' reward with the share of the task that was done,"
                 " inside groups", title_justify="left")
    for o in opinions:
        share = sum(s is not None for s in o.scores) / max(len(o.scores), 1)
        rates = [f"{r.value:.3f} ({r.passed}/{r.episodes})" for r in o.passed]
        itself = f"{o.itself.share:.3f}, {_number(o.itself.kappa, '.3f')}" if o.itself else ""
        table.add_row(o.name, f"{share:.0%}", *rates, itself)
        for denominator, pair in o.incentives.items():
            paid.add_row(o.name, denominator, *map(_told, pair))
    console.print(table, paid)
    for o in opinions:
        console.print(_by_note(o))
    console.print(_in_bits(opinions))
    for other in opinions[1:]:
        console.print(_compared(opinions[0], other))
    for line in (line for o in opinions for line in o.warnings()):
        console.print(Text(f"WARNING {line}", style="bold red"))


def draw(opinions: Sequence[Opinion], path: Path) -> None:
    """Writes the picture; the second judge is compared with the first, where there is one.

    The suffix chooses the format.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(13, 3.8), layout="constrained")
        rates, correlations, table, bins = figure.subplots(1, 4)
        _draw_rates(rates, opinions)
        _draw_correlations(correlations, opinions)
        if len(opinions) > 1:
            _draw_table(table, opinions[0], opinions[1])
            _draw_bins(bins, opinions[0], opinions[1])
        else:
            for ax in (table, bins):
                ax.set_axis_off()
        figure.savefig(path, dpi=150)


def _by_note(o: Opinion) -> object:
    from rich.table import Table

    table = Table("grade", "note", title=f"{o.name}: how often the request ended right",
                  title_justify="left")
    for column in ("turns", "P(right)"):
        table.add_column(column, justify="right")
    turns = sum(rate.turns for rate in o.notes if not rate.note)
    right = sum(rate.right for rate in o.notes if not rate.note)
    for rate in o.notes:
        share = f"{rate.right / rate.turns:.2f}"
        if not rate.note:
            table.add_section()
            table.add_row(rate.grade, "(all)", str(rate.turns), share)
        elif not o.many_notes:
            table.add_row("", rate.note, str(rate.turns), share)
    table.add_section()
    table.add_row("", "all turns", str(turns), f"{right / turns:.2f}" if turns else "?")
    return table


def _in_bits(opinions: Sequence[Opinion]) -> object:
    from rich.table import Table

    table = Table("judge", "grade", "more than the first", "grade and note", "more than the first",
                  title="What a turn tells of its request's end, in bits (standard error by"
                        " bootstrap over tasks)", title_justify="left")
    first = opinions[0]
    for o in opinions:
        row = _bits_and_gap(o.by_grade, first.by_grade)
        row += ("free text", "") if o.many_notes else _bits_and_gap(o.by_note, first.by_note)
        table.add_row(o.name, *row)
    return table


def _bits_and_gap(mine: Bits, first: Bits) -> tuple[str, ...]:
    told = _with_error(mine.value, mine.error)
    if mine is first or mine.draws.shape != first.draws.shape:
        return told, ""
    gap = Bits(mine.value - first.value, mine.draws - first.draws)
    return told, _with_error(gap.value, gap.error, "+")


def _with_error(value: float, error: float, sign: str = "") -> str:
    return f"{_number(value, sign + '.4f')} ± {_number(error, '.4f')}"


def _compared(one: Opinion, other: Opinion) -> object:
    from rich.table import Table

    found = agreement(one.scores, other.scores)
    table = Table(
        title=f"{one.name} (rows) and {other.name} (columns): {found.turns} turns, same"
        f" {found.share:.3f}, kappa {found.kappa:.3f}",
        title_justify="left",
    )
    for column in ("score", *_NAMES, "", "turns", "same", "kappa"):
        table.add_column(column, justify="right")
    for name, row in zip(_NAMES, found.table, strict=True):
        table.add_row(name, *map(str, row))
    table.add_section()
    for title, by in (("turn", by_position), ("of", by_length)):
        for name, part in by(one.scores, other.scores).items():
            if part.turns:
                label = f"turn {name}" if title == "turn" else f"episodes of {name} turns"
                table.add_row("", "", "", "", label, str(part.turns), f"{part.share:.3f}",
                              _number(part.kappa, ".3f"))
    return table


def _told(c: Correlation) -> str:
    if math.isnan(c.value):
        return f"? ({c.groups} groups)"
    return f"{c.value:+.2f} ({c.low:+.2f} to {c.high:+.2f}; {c.groups} groups)"


def _number(x: float, form: str) -> str:
    return "?" if math.isnan(x) else format(x, form)


def _draw_rates(ax: Axes, opinions: Sequence[Opinion]) -> None:
    ax.set_title("Success by the judge's word")
    places = np.arange(len(opinions))
    for shift, (label, color) in enumerate((("no -1", GREEN), ("a -1", RED))):
        heights = np.nan_to_num([o.passed[shift].value for o in opinions])
        ax.bar(places + 0.4 * shift - 0.2, heights, 0.38, color=color, label=label)
    ax.set_xticks(places, [Path(o.name).stem for o in opinions])
    ax.set_ylim(0, 1)
    ax.set_ylabel("share that passed")
    ax.legend()


def _draw_correlations(ax: Axes, opinions: Sequence[Opinion]) -> None:
    ax.set_title("Reward and share done, in a group")
    labels: list[str] = []
    for o in opinions:
        for denominator, pair in o.incentives.items():
            for c, color, shift in zip(pair, (BLUE, RED), (-0.12, 0.12), strict=True):
                y = len(labels) + shift
                ax.plot([c.low, c.high], [y, y], color=color, linewidth=2, alpha=0.6)
                ax.plot([c.value], [y], "o", color=color)
            labels.append(f"{Path(o.name).stem}\n{denominator}")
    ax.axvline(0, color=GREY, linewidth=0.8)
    ax.set_yticks(range(len(labels)), labels)
    ax.invert_yaxis()
    ax.set_xlim(-1, 1)
    ax.set_xlabel("correlation (blue: all groups, red: where all fail)")


def _draw_table(ax: Axes, one: Opinion, other: Opinion) -> None:
    found = agreement(one.scores, other.scores)
    ax.set_title(f"Turns by both scores, κ {_number(found.kappa, '.2f')}")
    ax.imshow(found.table / np.maximum(found.table.sum(axis=1, keepdims=True), 1), cmap="Blues",
              vmin=0, vmax=1)
    for row, column in np.ndindex(3, 3):
        ax.text(column, row, f"{found.table[row, column]:,}", ha="center", va="center")
    ax.set_xticks(range(3), _NAMES)
    ax.set_yticks(range(3), _NAMES)
    ax.set_xlabel(Path(other.name).stem)
    ax.set_ylabel(Path(one.name).stem)
    ax.grid(visible=False)


def _draw_bins(ax: Axes, one: Opinion, other: Opinion) -> None:
    ax.set_title("Same score, by place and length")
    for by, color, label in ((by_position, BLUE, "number of the turn"),
                             (by_length, GREEN, "turns of the episode")):
        parts = by(one.scores, other.scores)
        ax.plot(list(parts), [p.share for p in parts.values()], "o-", color=color, label=label)
    ax.set_ylim(0, 1.02)
    ax.set_ylabel("share of turns")
    ax.legend(loc="lower left")
