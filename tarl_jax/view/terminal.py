"""An episode as readable text: who said what, how the judge scored it, what it came to."""

from __future__ import annotations

import io
import json
import os
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tarl_jax.config import InputError
from tarl_jax.runs.live import DASH, printable
from tarl_jax.runs.metrics import (
    RESULTS_FILE,
    TRAJECTORY_DIR,
    read_trajectories,
    trajectory_files,
)

if TYPE_CHECKING:  # importing types imports jax, which reading the files does soon enough
    from rich.console import Console, RenderableType
    from rich.text import Text

    from tarl_jax.types import Call, Segment, Trajectory

PIPE_WIDTH = 120  # columns where standard output is no terminal
RESULT_LINES, RESULT_CHARS = 12, 1000  # of a tool result, before --full
PROMPT_LINES, PROMPT_CHARS = 4, 400  # of the system prompt, before --full
ONE_LINE_CALL = 90  # characters up to which a call is not broken over lines
LOW, VERY_LOW = -2.3, -4.6  # log-probs of 10% and 1%

_ROLE_STYLES = {"agent": "bold cyan", "user": "bold magenta", "tool": "bold blue"}
_SCORES = {1: ("+1", "bold green"), 0: (" 0", "bold yellow"), -1: ("-1", "bold red")}
_MINOR = ("0 minor", "yellow")
_ABSTAIN = ("abstain", "dim")


class ViewError(InputError):
    """There is nothing to show; the message says what exists."""


def find_file(run: str | os.PathLike[str], step: str | None, *, evaluation: bool) -> Path:
    """The file of episodes that the arguments name.

    Args:
      run: a run's directory, or the file itself, or a folder of τ²-bench's results.
      step: a number, or "last" or None for the last one there is.
      evaluation: look for episodes of an evaluation instead of training episodes.

    Raises ViewError, which names the steps that exist.
    """
    run = Path(run)
    if run.is_file():
        if step is not None or evaluation:
            raise ViewError(f"{run} is a file: --step and --eval choose from a run's directory")
        return run
    if not run.exists():
        raise ViewError(f"no such run: {run}")
    if (run / RESULTS_FILE).is_file():
        return find_file(run / RESULTS_FILE, step, evaluation=evaluation)
    kind, name = ("eval", "evaluation") if evaluation else ("step", "training")
    files = trajectory_files(run, kind)
    if not files:
        other = trajectory_files(run, "step" if evaluation else "eval")
        remedy = f"{'leave out' if evaluation else 'try'} --eval" if other else "no step yet?"
        raise ViewError(f"no {name} trajectories in {run / TRAJECTORY_DIR} ({remedy})")
    if step is None or step == "last":
        return files[max(files)]
    if not re.fullmatch(r"\d+", step):
        raise ViewError(f"--step {step}: give a number or 'last'")
    if int(step) not in files:
        raise ViewError(f"no {name} trajectories of step {step}; there are steps {_spans(files)}")
    return files[int(step)]


def _spans(numbers: Iterable[int]) -> str:
    """'1-80' for steps in a row, '0, 20, 40' for others."""
    spans: list[list[int]] = []
    for n in sorted(numbers):
        if spans and n == spans[-1][1] + 1:
            spans[-1][1] = n
        else:
            spans.append([n, n])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in spans)


def matches(trajectory: Trajectory, which: str) -> bool:
    """Is it a "success", a "failure" (no success, for whatever reason), "major", or "any"?"""
    if which == "success":
        return trajectory.success is True
    if which == "failure":
        return trajectory.success is not True
    if which == "major":
        return -1 in (trajectory.turn_scores or ())
    return True


def pick(trajectories: Sequence[Trajectory], which: str, index: int) -> int:
    """Place of the first trajectory from `index` on that matches; raises ViewError if none does."""
    if not 0 <= index < len(trajectories):
        last = len(trajectories) - 1
        raise ViewError(f"index {index} is out of range: the file holds 0 to {last}")
    places = [i for i, t in enumerate(trajectories) if matches(t, which)]
    for i in places:
        if i >= index:
            return i
    there = f"those before it: {_spans(places)}" if places else "nor before it"
    raise ViewError(f"no '{which}' among trajectories {index} to {len(trajectories) - 1}; {there}")


def show(
    path: Path,
    *,
    which: str = "any",
    index: int = 0,
    listing: bool = False,
    full: bool = False,
    tokens: bool = False,
    console: Console | None = None,
) -> None:
    """Prints one episode of the file, or with `listing` a line for each from there on.

    Args:
      which, index: see `pick`.
      full: do not shorten the system prompt and tool results.
      tokens: also print id and log-prob of the agent's tokens.
      console: where to print; standard output by default.

    Raises ViewError where there is nothing to show.
    """
    console = console or _console()
    try:
        trajectories = _read(path)
    except (ValueError, OSError) as error:
        raise ViewError(str(error)) from error
    if not trajectories:
        raise ViewError(f"{path}: the file holds no trajectories")
    i = pick(trajectories, which, index)
    if listing:
        for place, trajectory in enumerate(trajectories[i:], i):
            if matches(trajectory, which):
                console.print(list_line(place, trajectory, console.width), soft_wrap=True)
        return
    console.rule(f"{path.name}: trajectory {i} (of 0 to {len(trajectories) - 1})")
    for part in render(trajectories[i], full=full, tokens=tokens):
        console.print(part)


def _read(path: Path) -> list[Trajectory]:
    if path.suffix != ".json":
        return read_trajectories(path)
    from tarl_jax.runs.tau2_results import read_results

    return read_results(path)


def _console() -> Console:
    from rich.console import Console

    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # an ASCII locale shows "?", not a traceback
    console = Console(highlight=False, markup=False)  # names of files may hold [ ]
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = PIPE_WIDTH
    return console


def list_line(index: int, trajectory: Trajectory, width: int) -> Text:
    """Place, verdict, reward, scores by turn (m: minor), length, end, and task, in `width` columns.

    Where there is no room for all scores, the last ones are shown.
    """
    from rich.text import Text

    line = Text(f"{index:>4} ")
    line.append(*_verdict(trajectory))
    line.append(f" {_number(trajectory.reward):>6} ")
    task = printable(trajectory.task.task_id)
    tail = f" {len(trajectory.turns):>2} turns {trajectory.num_tokens:>6,} tokens"
    ended = "user fault" if trajectory.user_faults else trajectory.stop_reason
    tail += f" {ended:<11} "
    room = max(width - len(line) - len(tail) - max(len(task), 14), 7)
    scores, minors = trajectory.turn_scores, trajectory.turn_minors or ()
    signs = Text()
    for turn, score in enumerate(() if scores is None else scores):
        text, style = _SCORES.get(score, ("?", "dim"))
        minor = score == 0 and turn < len(minors) and minors[turn]
        signs.append("m" if minor else text.strip()[0], style)
    signs = Text(*_ABSTAIN) if scores is None else signs
    if len(signs) > room:
        signs = Text("…") + signs[len(signs) - room + 1 :]
    line.append_text(signs)
    line.append(" " * (room - len(signs)) + tail)
    left = max(width - len(line), 8)
    return line.append(task if len(task) <= left else "…" + task[len(task) - left + 1 :])


def render(
    trajectory: Trajectory, *, full: bool = False, tokens: bool = False
) -> list[RenderableType]:
    """The parts of one episode, top to bottom: task, dialogue, outcome."""
    parts: list[RenderableType] = [_header(trajectory)]
    for segment in trajectory.segments:
        parts += _segment(segment, trajectory, full=full, tokens=tokens)
    return [*parts, *_outcome(trajectory)]


def _header(trajectory: Trajectory) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    task = trajectory.task
    calls = "\n".join(format_call(call) for call in task.gold_calls)
    maths = task.kind == "maths"
    rows = [
        ("task", f"{task.task_id}  ({task.source}, {task.split}), user {task.user_id}"),
        ("seed", str(trajectory.seed)),
        ("instruction", task.instruction),
        ("gold calls", calls or ("" if maths or task.checks else "none: nothing is to be written")),
        ("checks", "\n".join(f"{c.requestor}: {c.name} {dict(c.kwargs)}" for c in task.checks)),
        ("answer" if maths else "outputs", ", ".join(task.outputs)),
        ("ended by", trajectory.stop_reason),
        ("length", f"{len(trajectory.turns)} turns, {trajectory.num_tokens:,} tokens"),
    ]
    grid = Table.grid(padding=(0, 2))
    for name, text in rows:
        if text:
            grid.add_row(Text(name, style="dim"), Text(printable(text)))
    return grid


def _segment(
    segment: Segment, trajectory: Trajectory, *, full: bool, tokens: bool
) -> list[RenderableType]:
    from rich.padding import Padding
    from rich.text import Text

    agent = segment.role == "agent"
    title = Text("\n")
    title.append(segment.role, _ROLE_STYLES.get(segment.role, "bold"))
    if agent:
        title.append(f"  turn {segment.turn}  ", "dim")
        title.append(*turn_score(trajectory, segment.turn))
        title.append(f"  {turn_note(trajectory, segment.turn)}", "italic")
    facts = ", ".join(_fact(k, v) for k, v in segment.info.items()
                      if v not in (None, False) and k != "user_calls")
    if facts:
        title.append(f"  [{printable(facts)}]", "dim")
    lines = _agent_lines(segment) if agent else [(_said(segment, full=full), "")]
    body = Text("\n").join(Text(printable(text), style) for text, style in lines if text)
    if calls := segment.info.get("user_calls"):  # those before the message
        body = Text(_calls(calls), "dim").append(body.plain, "not dim")
    if agent and tokens:
        body.append("\n").append_text(token_table(segment))
    return [title, Padding(body, (0, 0, 0, 4))]


def _calls(calls: Iterable[dict[str, Any]]) -> str:
    """What a user with tools did before it spoke, and what it saw; the agent saw neither."""
    from tarl_jax.types import Call

    shown = [(format_call(Call(c["name"], c["kwargs"])), c["output"]) for c in calls]
    return "".join(f"{printable(call)}\n  {printable(output)}\n" for call, output in shown)


def _agent_lines(segment: Segment) -> list[tuple[str, str]]:
    """(text, style) of what a turn thought, said, wrote beside that, and called."""
    calls = [(format_call(call), "cyan") for call in segment.calls]
    unheard = segment.unheard
    return [(segment.thought, "dim italic"), (segment.message, ""), (unheard, ""), *calls]


def _said(segment: Segment, *, full: bool) -> str:
    """What somebody else than the agent said, as shown: shortened by role."""
    text = _pretty(segment.text) if segment.role == "tool" else segment.text
    text = printable(text)
    if segment.role == "tool" and not full:
        return shorten(text, RESULT_LINES, RESULT_CHARS)
    if segment.role == "system" and not full:
        return shorten(text, PROMPT_LINES, PROMPT_CHARS)
    return text


def _fact(key: str, value: Any) -> str:
    return key if value is True else f"{key}={value}"


def turn_score(trajectory: Trajectory, turn: int) -> tuple[str, str]:
    """(text, style) of the judge's score of an agent turn; "abstain" where it gave none.

    A 0 that is a minor issue says so; one that is neutral is a 0 alone.
    """
    scores, minors = trajectory.turn_scores or (), trajectory.turn_minors or ()
    if not 0 <= turn < len(scores):
        return _ABSTAIN
    if scores[turn] == 0 and turn < len(minors) and minors[turn]:
        return _MINOR
    return _SCORES.get(scores[turn], _ABSTAIN)


def turn_note(trajectory: Trajectory, turn: int) -> str:
    """The judge's reason for its score of an agent turn; empty where it gave none."""
    notes = trajectory.judge_notes
    return printable(notes[turn]) if 0 <= turn < len(notes) else ""


def format_call(call: Call) -> str:
    """`name(key="value", …)`, over several lines if it is long."""
    values = {k: json.dumps(v, ensure_ascii=False) for k, v in call.kwargs.items()}
    line = f"{call.name}({', '.join(f'{k}={v}' for k, v in values.items())})"
    if len(line) <= ONE_LINE_CALL:
        return line
    return f"{call.name}(\n" + "".join(f"    {k}={v},\n" for k, v in values.items()) + ")"


def _pretty(text: str) -> str:
    """A JSON object or list that does not fit a line, one entry per line; other text as it is."""
    if len(text) <= ONE_LINE_CALL:
        return text
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        return text
    # One level is enough to read a record by, and ten times shorter than indenting all of it.
    if isinstance(data, dict):
        entries = [f"{json.dumps(k)}: {json.dumps(v, ensure_ascii=False)}" for k, v in data.items()]
        return "{\n" + "".join(f"  {entry},\n" for entry in entries) + "}"
    if isinstance(data, list):
        return "[\n" + "".join(f"  {json.dumps(v, ensure_ascii=False)},\n" for v in data) + "]"
    return text


def shorten(text: str, max_lines: int, max_chars: int) -> str:
    """The beginning of a text, and a marker that says how much is missing, if any is."""
    kept = "\n".join(text.split("\n")[:max_lines])[:max_chars]
    if len(kept) == len(text):
        return text
    missing = len(text) - len(kept)
    return f"{kept}\n… {missing:,} more characters (--full shows them)"


def token_table(segment: Segment) -> Text:
    """`id log-prob` of each token in order; the forced ones have no log-prob."""
    from rich.text import Text

    log_probs = [p for p, s in zip(segment.log_probs, segment.sampled, strict=True) if s]
    table = Text(style="dim")
    table.append(f"{len(log_probs)} sampled tokens, log-prob {sum(log_probs):.3f} in all:\n")
    for i, (token, sampled) in enumerate(zip(segment.token_ids, segment.sampled, strict=True)):
        log_prob = segment.log_probs[i]
        style = "" if log_prob > LOW else "yellow" if log_prob > VERY_LOW else "red"
        shown = f"{log_prob:.3f}" if sampled else "forced"
        table.append(f"{token:>6} {shown:>7}", style)
        table.append("\n" if i % 6 == 5 else "  ")
    table.rstrip()
    return table


def _outcome(trajectory: Trajectory) -> list[RenderableType]:
    from rich.text import Text

    parts = [_lines("database changes", trajectory.diff, "")]
    if trajectory.gold_diff:
        title = "where the final database is wrong (right -> here)"
        parts.append(_lines(title, trajectory.gold_diff, "red"))
    if trajectory.user_faults:
        parts.append(_lines("faults of the user", trajectory.user_faults, "yellow"))
    verdict = Text("\n").append(*_verdict(trajectory))
    if trajectory.success is None:
        verdict.append("  the infrastructure broke the episode")
    if not trajectory.outputs_found:
        verdict.append("  (a required output was never said)", "yellow")
    verdict.append(f"   reward {_number(trajectory.reward)}")
    seconds = ", ".join(f"{phase} {s:.2f}" for phase, s in trajectory.seconds.items())
    verdict.append(f"   seconds: {seconds}" if seconds else "", "dim")
    return [*parts, verdict]


def _lines(title: str, lines: Sequence[str], style: str) -> Text:
    from rich.text import Text

    text = Text("\n").append(title, "bold")
    for line in lines or ("none",):
        text.append("\n    " + printable(line), style)
    return text


def _verdict(trajectory: Trajectory) -> tuple[str, str]:
    return {
        True: ("success", "bold green"),
        False: ("failure", "bold red"),
        None: ("broken ", "bold yellow"),
    }[trajectory.success]


def _number(value: float | None) -> str:
    return DASH if value is None else f"{value:+.2f}"
