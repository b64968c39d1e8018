"""The terminal view of a training run.

On a terminal `LiveView` keeps one panel up to date; anywhere else (a file, a pipe, a notebook) it
prints one plain line per step and per long phase. Values are looked up by these keys (shares and
rates are fractions, times are seconds); one that is absent shows as a dash:

    train/pass_rate  eval/pass^1  reward/{mean,terminal,turns,major}  judge/major_share
    rl/{kl,entropy,clip_fraction,log_prob_gap,zero_variance_groups}
    rollout/{tokens_per_second,episode_tokens,turns}  seconds/{rollout,judge,update,eval,step}
"""

from __future__ import annotations

import collections
import math
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Self, TextIO

from tarl_jax.runs import health

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.live import Live
    from rich.table import Table

DASH = "\u2013"  # an en dash: no value
STEP_PHASES = ("rollout", "judge", "update")  # of every step, as in seconds/<phase>
REWARD_PARTS = ("terminal", "turns", "major")  # as in reward/<part>; their sum is reward/mean
HISTORY = 32  # steps that the sparkline shows, if the terminal is wide enough
NUMBERS_WIDTH = 62  # columns of the panel that are not sparkline
RATE_WINDOW = 20  # steps over which the time left is estimated
QUIET_SECONDS = 10  # of a phase before plain lines say how far it is
BAR = 28  # columns of a bar, where there is room

_EVAL_KEYS = ("eval/", "seconds/eval")
_NUMBER = re.compile(r"[-+]?\d[\d.]*(?:e[-+]?\d+)?")
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


def printable(text: str) -> str:
    """`text` with control characters spelled out, so that it cannot steer a terminal.

    Newlines stay; what a policy or a tool wrote is otherwise shown as it is.
    """
    text = text.replace("\r\n", "\n").replace("\t", "    ")
    return _CONTROL.sub(lambda m: m.group().encode("unicode_escape").decode(), text)


def sparkline(values: Iterable[float]) -> str:
    """One block character per value, from the lowest to the highest; a gap where not finite.

    A spread below 0.1 is drawn as if it were 0.1, so that noise does not look like a trend.
    """
    values = list(values)
    finite = [x for x in values if math.isfinite(x)]
    if not finite:
        return " " * len(values)
    low = min(finite)
    spread = max(max(finite) - low, 0.1)
    return "".join(
        "▁▂▃▄▅▆▇█"[round(7 * (x - low) / spread)] if math.isfinite(x) else " " for x in values
    )


class LiveView:
    """Shows how a run is doing; a context manager.

    Args:
      total_steps: RL steps of the whole run.
      enabled: False prints plain lines even on a terminal.
      title: what is running, e.g. the run's name.
      stream: where to write; standard output by default.
    """

    def __init__(self, total_steps: int, enabled: bool, title: str, stream: TextIO | None = None):
        self._stream = sys.stdout if stream is None else stream
        dumb = os.environ.get("TERM", "") in ("dumb", "unknown")
        self._live_wanted = enabled and self._stream.isatty() and not dumb
        self._live: Live | None = None
        self._title = printable(title)
        self._total = total_steps
        self._step: int | None = None
        self._values: dict[str, float] = {}
        self._eval_step: int | None = None
        self._history: collections.deque[float] = collections.deque(maxlen=HISTORY)
        self._steps: list[Mapping[str, float]] = []  # the training values of each step
        self._evaluations: list[Mapping[str, float]] = []
        self._ends: collections.deque[tuple[int, float]] = collections.deque(maxlen=RATE_WINDOW)
        self._start = time.monotonic()
        self._phase: tuple[str, int | None, int | None] | None = None
        self._phase_start = self._start
        self._note = ""
        self._last: Callable[[], None] = lambda: None
        self._said: dict[str, int] = {}  # warnings by what they are, and their numbers
        self._told = 0  # fifths of the phase that have a line

    def __enter__(self) -> Self:
        self._start = time.monotonic()
        if not self._live_wanted:
            self._plain(self._title)
            return self
        from rich.console import Console
        from rich.live import Live

        console = Console(file=self._stream, force_terminal=True)
        # Twice a second keeps the clocks moving and takes next to nothing from the run.
        self._live = Live(console=console, get_renderable=self._panel, refresh_per_second=2)
        self._live.start(refresh=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()  # the last panel stays on the screen
            self._live = None
        if kind is None:
            self._last()

    def update(self, step: int, values: Mapping[str, float], phase: str | None = None) -> None:
        """Shows the numbers of a finished step; a second call for that step adds to them.

        Args:
          step: RL steps finished.
          values: by key (see the module's docstring); others are ignored.
          phase: what the run does next; None ends the phase on display.
        """
        numbers = {key: float(value) for key, value in values.items()}
        if step != self._step:
            # An evaluation stands until the next one; a training value that a step lacks does not.
            kept = {k: v for k, v in self._values.items() if k.startswith(_EVAL_KEYS)}
            self._values = {**kept, **numbers}
            self._ends.append((step, time.monotonic()))
        else:
            self._values = {**self._values, **numbers}
        self._step = step
        if "eval/pass^1" in numbers:
            self._eval_step = step
            self._evaluations.append(numbers)
        if "train/pass_rate" in numbers:
            self._history.append(numbers["train/pass_rate"])
            self._steps.append(numbers)
        self._set_phase(phase, None, None)
        if self._live is None:
            self._plain(self._step_line(numbers))
        else:
            self._live.refresh()

    def phase(
        self, name: str, done: int | None = None, total: int | None = None, note: str = ""
    ) -> None:
        """Shows how far a phase (warm start, evaluation) is: `done` of `total`, where known.

        Without a panel, a line marks its beginning, and one each further fifth that comes with a
        note or after some seconds; not so for the phases of every step, whose times are in the
        step's own line.
        """
        changed = self._set_phase(name, done, total)
        self._note = note
        if self._live is not None:
            if changed:  # what follows may be many calls: the clock draws those
                self._live.refresh()
        elif name in (*STEP_PHASES, "refill"):
            return
        elif changed:
            count = "" if total is None else f" ({total:,})"
            self._plain(f"{name}{count}")
        elif total and done and done < total and done * 5 // total > self._told:
            seconds = time.monotonic() - self._phase_start
            if note or seconds > QUIET_SECONDS:
                self._told = done * 5 // total
                left = f"left {_duration(seconds / done * (total - done))}"
                self._plain("  ".join(filter(None, (f"{name} {done:,}/{total:,}", note, left))))

    def log(self, text: str) -> None:
        """Prints text that stays: above the panel, or as plain lines."""
        if self._live is None:
            self._plain(text)
            return
        from rich.text import Text

        self._live.console.print(Text(printable(text)))

    def at_end(self, show: Callable[[], None]) -> None:
        """Is called when the view has ended, unless an error ends it."""
        self._last = show

    def _set_phase(self, name: str | None, done: int | None, total: int | None) -> bool:
        """Returns whether this is another phase than before."""
        changed = name != (self._phase[0] if self._phase else None)
        if changed:
            self._phase_start = time.monotonic()
            self._note, self._told = "", 0
        self._phase = None if name is None else (name, done, total)
        return changed

    def _plain(self, text: str) -> None:
        encoding = self._stream.encoding or "utf-8"
        # A terminal-less job may run under an ASCII locale: better "?" than a dead run.
        text = printable(text).encode(encoding, "replace").decode(encoding)
        print(text, file=self._stream, flush=True)

    def _show(self, key: str, spec: str = ".3g") -> str:
        return show(self._values.get(key), spec)

    def _step_line(self, numbers: Mapping[str, float]) -> str:
        """The plain line: training numbers if this call brought any, the evaluation likewise."""
        s, parts = self._show, [f"step {self._step}/{self._total}"]
        if any(not key.startswith(_EVAL_KEYS) for key in numbers):
            reward = ", ".join(f"{k} {s(f'reward/{k}', '+.2f')}" for k in REWARD_PARTS)
            seconds = ", ".join(f"{k} {s(f'seconds/{k}', '.1f')}" for k in STEP_PHASES)
            parts += [
                f"pass {s('train/pass_rate', '.3f')}",
                *([f"maths {s('maths/pass_rate', '.3f')}"] if "maths/pass_rate" in numbers else []),
                f"reward {s('reward/mean', '+.2f')} ({reward})",
                f"kl {s('rl/kl')}",
                f"entropy {s('rl/entropy')}",
                *([f"stale {s('rl/staleness')}"] if "rl/staleness" in numbers
                  else [f"gap {s('rl/log_prob_gap')}"]),
                f"{s('rollout/tokens_per_second', ',.0f')} tokens/s",
                f"{s('seconds/step', '.1f')} s ({seconds})",
                f"left {_duration(self._seconds_left())}",
            ]
        if "eval/pass^1" in numbers:
            parts += [f"eval pass^1 {s('eval/pass^1', '.3f')} in {s('seconds/eval', '.1f')} s"]
        return "  ".join(parts + self._short_warnings())

    def _seconds_left(self) -> float | None:
        """From the wall clock of the last steps, so that evaluations and checkpoints count."""
        if self._step is None:
            return None
        (first, start), (last, end) = self._ends[0], self._ends[-1]
        per_step = (end - start) / (last - first) if last > first else None
        if per_step is None:
            per_step = self._values.get("seconds/step")
        return None if per_step is None else per_step * max(self._total - self._step, 0)

    def _warnings(self) -> list[str]:
        return health.warnings(self._values, self._steps, self._evaluations)

    def _short_warnings(self) -> list[str]:
        """Each warning in full where it comes up first, and by its number from then on."""
        found = []
        for warning in self._warnings():
            what = _NUMBER.sub("", warning)
            known = self._said.get(what)
            self._said.setdefault(what, len(self._said) + 1)
            found.append(f"!{known}" if known else f"!{self._said[what]} {warning}")
        return found

    def _panel(self) -> RenderableType:
        from rich.console import Group
        from rich.panel import Panel
        from rich.text import Text

        rows: list[RenderableType] = [self._progress(), Text(""), self._numbers(), self._speed()]
        rows += [Text(f"! {warning}", style="yellow") for warning in self._warnings()]
        return Panel(Group(*rows), title=Text(self._title, style="bold"), title_align="left")

    def _progress(self) -> Table:
        from rich.progress_bar import ProgressBar
        from rich.table import Table

        now, step = time.monotonic(), self._step or 0
        clocks = f"{_duration(now - self._start)} so far, {_duration(self._seconds_left())} left"
        rows = [("step", f"{step}/{self._total}", max(self._total, 1), step, clocks)]
        phase = self._phase  # read once: the panel is drawn by another thread than it is set by
        if phase is not None:
            name, done, total = phase
            name = f"{name} ({self._note})" if self._note else name
            seconds = now - self._phase_start
            if done is None or not total:
                rows.append((name, "", 0, 0, _duration(seconds)))
            else:
                left = _duration(seconds / done * (total - done) if done else None)
                clocks = f"{_duration(seconds)} so far, {left} left"
                rows.append((name, f"{done:,}/{total:,}", total, done, clocks))
        columns = self._live.console.width if self._live else 80
        names, counts, times = (max(len(str(row[i])) for row in rows) for i in (0, 1, 4))
        bar = min(BAR, columns - names - counts - times - 10)
        grid = Table.grid(padding=(0, 2))
        for name, count, total, done, clocks in rows:
            cells: list[RenderableType] = [name, count]
            if bar >= 6:
                cells.append(ProgressBar(total or None, done, width=bar, pulse=not total))
            grid.add_row(*cells, clocks)
        if phase is None:
            grid.add_row("")  # an empty row, so that the panel does not jump
        return grid

    def _numbers(self) -> Table:
        from rich.table import Table

        s = self._show
        grid = Table.grid(padding=(0, 2))
        for _ in range(2):  # two groups side by side: label, number, note
            grid.add_column(style="dim")
            grid.add_column(justify="right")
            grid.add_column(style="cyan")
        at = "" if self._eval_step is None else f"after step {self._eval_step}"
        room = max(self._live.console.width - NUMBERS_WIDTH, 8) if self._live else HISTORY
        spark = sparkline(list(self._history)[-room:])
        left = [
            ("pass rate", s("train/pass_rate", ".3f"), spark),
            ("reward", s("reward/mean", "+.2f"), ""),
            *((f"  {part}", s(f"reward/{part}", "+.2f"), "") for part in REWARD_PARTS),
            ("majors", s("judge/major_share", ".1%"), ""),
        ]
        right = [
            ("held-out pass^1", s("eval/pass^1", ".3f"), at),
            ("KL", s("rl/kl"), ""),
            ("entropy", s("rl/entropy"), ""),
            ("staleness", s("rl/staleness"), "") if "rl/staleness" in self._values
            else ("log-prob gap", s("rl/log_prob_gap"), ""),
            ("clip fraction", s("rl/clip_fraction", ".1%"), ""),
            ("zero-variance", s("rl/zero_variance_groups", ".1%"), ""),
        ]
        for one, two in zip(left, right, strict=True):
            grid.add_row(*one, *two)
        return grid

    def _speed(self) -> RenderableType:
        from rich.text import Text

        s, phases = self._show, (*STEP_PHASES, "eval")
        seconds = "  ".join(f"{phase} {s(f'seconds/{phase}', '.1f')}" for phase in phases)
        return Text(
            f"\n{s('rollout/tokens_per_second', ',.0f')} tokens/s   "
            f"{s('rollout/episode_tokens', ',.0f')} tokens and {s('rollout/turns', '.1f')} turns "
            f"an episode\nseconds  {seconds}  step {s('seconds/step', '.1f')}"
        )


def show(value: float | None, spec: str) -> str:
    """A number by its format spec; a dash if there is none."""
    if value is None:
        return DASH
    return format(value, spec) if math.isfinite(value) else str(value)


def _duration(seconds: float | None) -> str:
    if seconds is None or not math.isfinite(seconds):
        return DASH
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"
