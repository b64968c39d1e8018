"""What reviewers said about the tasks of a file, one JSON line per verdict in a file beside it.

A verdict holds for the very record it was given on: it carries the record's digest, so that a task
file that is made anew is not taken for the one that was reviewed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

from tarl_jax.config import InputError
from tarl_jax.config.plain import loads, read_text
from tarl_jax.types import Task

VERDICTS = ("accept", "reject", "edit")


@dataclasses.dataclass(frozen=True)
class Verdict:
    """One reviewer's word on one task.

    digest: of the record as it was shown (`digest`). verdict: one of VERDICTS. reason: why it was
    rejected. task: the edited task.
    """

    task_id: str
    digest: str
    verdict: str
    reason: str = ""
    task: Task | None = None

    def to_json(self) -> dict[str, Any]:
        data = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {**data, "task": self.task.to_json() if self.task else None}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Verdict:
        found = cls(**{**data, "task": Task.from_json(data["task"]) if data["task"] else None})
        if found.verdict not in VERDICTS or (found.task is None) != (found.verdict != "edit"):
            raise InputError(f"verdict {found.verdict!r}: expected one of {', '.join(VERDICTS)},"
                             " and a task with 'edit' alone")
        return found


def review_file(path: str | Path) -> Path:
    """Where the verdicts on the tasks of `path` stand."""
    return Path(f"{path}.review.jsonl")


def digest(task: Task) -> str:
    """Names a task's record by its content."""
    text = json.dumps(task.to_json(), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def read_verdicts(path: str | Path, tasks: list[Task]) -> dict[str, Verdict]:
    """The last verdict on each task of the file `path`, by task id; empty without a review.

    A last line that was cut off while it was written is passed over. Raises ValueError for another
    broken line, and for a verdict on a task or a record that the file does not hold.
    """
    file = review_file(path)
    if not file.is_file():
        return {}
    shown = {task.task_id: digest(task) for task in tasks}
    found: dict[str, Verdict] = {}
    for number, line in enumerate(read_text(file).split("\n")[:-1], 1):
        if not line.strip():
            continue
        try:
            verdict = Verdict.from_json(loads(line))
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{file}:{number}: not a verdict: {error}") from error
        if shown.get(verdict.task_id) != verdict.digest:
            raise InputError(
                f"{file}:{number}: is about a task {verdict.task_id!r} that {path} does not hold"
                " (any more): move the review file away, or bring back the tasks it was made on"
            )
        found[verdict.task_id] = verdict
    return found


def append_verdict(path: str | Path, verdict: Verdict) -> None:
    """Adds a verdict to the file beside `path`; it is on disk when this returns."""
    file = review_file(path)
    cut = file.is_file() and not file.read_bytes().endswith(b"\n") and file.stat().st_size > 0
    if cut:  # what an interrupted write left would spoil the next line
        whole = file.read_bytes()
        file.write_bytes(whole[: whole.rfind(b"\n") + 1])
    with file.open("a", encoding="utf-8") as out:
        out.write(json.dumps(verdict.to_json()) + "\n")


def reviewed(path: str | Path, tasks: list[Task]) -> list[Task]:
    """The tasks of the file `path` as its review leaves them.

    Raises ValueError for a broken review, or one that rejects every task.
    """
    verdicts = read_verdicts(path, tasks)
    left = []
    for task in tasks:
        verdict = verdicts.get(task.task_id)
        if verdict is None or verdict.verdict != "reject":
            left.append(verdict.task if verdict and verdict.task else task)
    if not left:
        raise InputError(f"{path}: its review rejects every task")
    return left
