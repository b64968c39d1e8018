"""A person looks at tasks of a file, one by one in the terminal, and accepts, rejects or edits."""

from __future__ import annotations

import json
import os
import random
import shlex
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from rich.console import Console, Group
from rich.panel import Panel
from rich.text import Text

from tarl_jax.config import InputError
from tarl_jax.config.plain import loads, read_text
from tarl_jax.sandbox.domain import Domain
from tarl_jax.sandbox.reviews import Verdict, append_verdict, digest, read_verdicts
from tarl_jax.sandbox.synthesis.checks import Rejected, check
from tarl_jax.sandbox.synthesis.graph import ToolGraph
from tarl_jax.sandbox.tasks import read_tasks
from tarl_jax.types import Task

_ASK = "[b]a[/b]ccept, [b]r[/b]eject, [b]e[/b]dit, [b]s[/b]kip or [b]q[/b]uit: "


def review(
    path: str | Path,
    domain: Domain,
    console: Console,
    sample: int = 0,
    ask: Callable[[str], str] | None = None,
    edit: Callable[[str], str] | None = None,
) -> int:
    """Asks for a verdict on `sample` tasks of the file (0: all) that have none; returns how many
    it got. Each is on disk at once, so that it can be stopped at any moment and taken up again.

    The sample is a function of the file alone. ask: reads an answer; edit: lets a text be edited
    (by default the console and $EDITOR). Raises as `tasks.load_tasks` does.
    """
    ask = ask or console.input
    edit = edit or edit_text
    tasks = read_tasks(path)
    known = read_verdicts(path, tasks)
    chosen = tasks
    if sample:
        chosen = random.Random("review").sample(tasks, min(sample, len(tasks)))
    waiting = [task for task in chosen if task.task_id not in known]
    given = 0
    for place, task in enumerate(waiting, 1):
        console.print(_panel(task, domain, f"{place} of {len(waiting)}"))
        verdict = _verdict(task, domain, console, ask, edit)
        if verdict == "quit":
            break
        if isinstance(verdict, Verdict):
            append_verdict(path, verdict)
            given += 1
    console.print(f"{given} verdicts; {len(waiting) - given} of the sample are left")
    return given


def edit_text(text: str) -> str:
    """The text as $EDITOR (or $VISUAL, or vi) leaves it.

    Raises ValueError if the editor cannot be started or fails.
    """
    editor = os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "task.json")
        path.write_text(text, "utf-8")
        try:
            subprocess.run([*shlex.split(editor), str(path)], check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise InputError(f"the editor {editor!r} failed: {error}; set EDITOR") from error
        return read_text(path)


def _verdict(
    task: Task, domain: Domain, console: Console,
    ask: Callable[[str], str], edit: Callable[[str], str],
) -> Verdict | str:
    """The verdict, or "skip" or "quit"."""
    text = json.dumps(task.to_json(), indent=1)
    while True:
        try:
            answer = ask(_ASK).strip().lower()[:1]
        except EOFError:
            return "quit"
        if answer == "a":
            return Verdict(task.task_id, digest(task), "accept")
        if answer == "r":
            reason = ask("reason: ").strip()
            if reason:
                return Verdict(task.task_id, digest(task), "reject", reason)
            console.print("a rejection needs a reason")
        elif answer == "e":
            try:
                text = edit(text)
                edited = _edited(text, task, domain)
            except (ValueError, KeyError, TypeError, Rejected) as error:
                console.print(Text(f"refused: {error}; edit again, or choose otherwise"))
                continue
            return Verdict(task.task_id, digest(task), "edit", task=edited)
        elif answer in ("s", "q"):
            return "skip" if answer == "s" else "quit"


def _edited(text: str, task: Task, domain: Domain) -> Task:
    """The record that a reviewer wrote, checked as a made one is."""
    edited = Task.from_json(loads(text))
    for name in ("task_id", "user_id", "split", "source"):
        if getattr(edited, name) != getattr(task, name):
            raise InputError(f"{name} = {getattr(edited, name)!r}: must stay"
                             f" {getattr(task, name)!r}")
    return check(domain, ToolGraph(domain), edited)


def _panel(task: Task, domain: Domain, place: str) -> Panel:
    state = domain.new_state()
    for call in task.gold_calls:
        domain.call(state, call.name, call.kwargs)
    calls = [f"{c.name}({', '.join(f'{k}={v!r}' for k, v in c.kwargs.items())})"
             for c in task.gold_calls]
    facts = [
        ("user", task.user_id),
        ("split", f"{task.split}, difficulty {task.difficulty}, {task.expert_turns} expert turns"),
        ("persona", task.persona or "plain"),
        ("instruction", task.instruction),
        ("gold calls", "\n".join(calls) or "none: nothing may be written"),
        ("to be told", ", ".join(task.outputs) or "-"),
        ("database", "\n".join(domain.diff(state)) or "unchanged"),
    ]
    lines = [Text.assemble((f"{name}\n", "bold cyan"), f"{value}\n") for name, value in facts]
    return Panel(Group(*lines), title=Text(f"{task.task_id}  ({place})"))
