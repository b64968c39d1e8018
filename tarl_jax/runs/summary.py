"""The table that sums a run up: its evaluations before and after training, and what changed."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, TextIO

from tarl_jax.runs.live import show

if TYPE_CHECKING:
    from rich.table import Table

Values = Mapping[str, float | None]

# (row, key, format, whether more is better, if either is)
_SUMMARY: tuple[tuple[str, str, str, bool | None], ...] = (
    *((f"pass^{k}", f"eval/pass^{k}", ".3f", True) for k in range(1, 5)),
    ("clean pass", "eval/clean_pass", ".3f", True),
    ("major deviations", "eval/major_share", ".3f", False),
    ("waits", "eval/waits", ".2f", None),
    ("turns", "eval/turns", ".1f", None),
    ("episode tokens", "eval/episode_tokens", ",.0f", None),
)


_JUDGED = ("eval/clean_pass", "eval/major_share")


def summary_table(
    base: Values, final: Values, difference: Values | None = None
) -> Table:
    """The evaluations before and after training, side by side; without a `base` the other alone.

    Args:
      base, final: values by key; `<key>_low` and `<key>_high`, where present, are the ends of an
        interval and shown in brackets. An absent or null value shows as a dash, or as "not judged"
        where the judge abstained on every episode.
      difference: of the two, in the same form, where it has intervals of its own.
    """
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("held-out tasks")
    for name in ("base", "trained", "difference") if base else ("trained",):
        table.add_column(name, justify="right")
    counts = [values.get("eval/tasks") for values in (base, final)]
    if difference and None not in counts and counts[0] != counts[1]:
        table.caption = (f"base on {counts[0]:.0f} tasks, trained on {counts[1]:.0f}; differences"
                         " with intervals are over those that both have played")
        table.caption_justify = "left"
    maths = ("maths pass@1", "eval/maths_pass@1", ".3f", True)
    more = [maths] if maths[1] in final else []
    more += [
        (f"τ²-bench's pass^{k}", f"eval/tau2_pass^{k}", ".3f", True)
        for k in range(1, 5) if f"eval/tau2_pass^{k}" in final
    ]
    more += [
        (f"pass^1 spoken, {key.split('/')[2]}", key, ".3f", True)
        for key in final if re.fullmatch(r"eval/spoken/.+/pass\^1", key)
    ]
    for row, key, spec, more_is_better in (*_SUMMARY, *more):
        before, after = base.get(key), final.get(key)
        change = None if before is None or after is None else after - before
        shown = show(change, "+" + spec)
        if difference and difference.get(key) is not None:
            shown = _with_interval(difference, key, "+" + spec)
        if change and more_is_better is not None:
            shown = f"[{'green' if (change > 0) == more_is_better else 'red'}]{shown}[/]"
        now = _with_interval(final, key, spec)
        table.add_row(row, *((_with_interval(base, key, spec), now, shown) if base else (now,)))
    return table


def _with_interval(values: Values, key: str, spec: str) -> str:
    low, high = values.get(f"{key}_low"), values.get(f"{key}_high")
    text = show(values.get(key), spec)
    if key in _JUDGED and key not in values and values.get("eval/judge/abstained") == 1:
        return "not judged"
    if low is None or high is None:
        return text
    return f"{text} ({format(low, spec)} to {format(high, spec)})"


def print_summary(
    base: Values, final: Values, stream: TextIO | None = None, difference: Values | None = None
) -> None:
    """Prints `summary_table`; plain text where the stream is not a terminal."""
    from rich.console import Console

    stream = sys.stdout if stream is None else stream
    if stream.isatty():
        Console(file=stream).print(summary_table(base, final, difference))
        return
    console = Console(file=stream, force_terminal=False, no_color=True, width=100)
    with console.capture() as capture:
        console.print(summary_table(base, final, difference))
    encoding = stream.encoding or "utf-8"
    print(capture.get().encode(encoding, "replace").decode(encoding), file=stream, end="")
