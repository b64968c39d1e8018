"""Maths problems as records and as tasks, and the reader of files like DeepScaleR's."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tarl_jax.config import InputError, MathsConfig, MissingFileError
from tarl_jax.config.plain import loads, read_json, read_lines, read_text
from tarl_jax.maths.arithmetic import Problem, make_problems
from tarl_jax.sandbox import tfds
from tarl_jax.types import Task


def maths_tasks(config: MathsConfig) -> tuple[list[Task], list[Task]]:
    """(training, held-out) problems as tasks; no problem is in both, none twice.

    Raises: FileNotFoundError or ValueError for a broken file, or for too few problems.
    """
    wanted = config.num_held_out + config.num_train
    given = config.file or ", ".join(config.tfds)
    if given:
        problems = load_problems(config.file) if config.file else _of_datasets(config)
        if len(problems) <= config.num_held_out:
            raise InputError(
                f"{given}: holds {len(problems)} problems, of which maths.num_held_out ="
                f" {config.num_held_out} are set apart: nothing is left to train on"
            )
        random.Random(f"maths-{config.seed}").shuffle(problems)
    else:
        problems = make_problems(wanted, config.levels, f"maths-{config.seed}")
    apart = config.num_held_out
    source = Path(config.file).stem or given or "arithmetic"
    return (
        [_task(p, i, "train", source) for i, p in enumerate(problems[apart:wanted])],
        [_task(p, i, "held_out", source) for i, p in enumerate(problems[:apart])],
    )


def _task(problem: Problem, index: int, split: str, source: str) -> Task:
    return Task(
        task_id=f"maths-{split}-{index}", user_id="", instruction=problem.text, gold_calls=(),
        outputs=(problem.answer,), split=split, source=source, script=None, expert_turns=1,
        kind="maths",
    )


def load_problems(path: str | Path) -> list[Problem]:
    """Reads a JSON list, or JSON lines, of records with a "problem" and an "answer".

    A "solution" is kept where there is one, further keys are ignored. Of problems with the same
    text the first is kept. Raises FileNotFoundError, or ValueError with file and record number.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingFileError(f"maths.file = '{path}' does not exist")
    return _distinct(_records(path), str(path))


def _of_datasets(config: MathsConfig) -> list[Problem]:
    """Those of `config.tfds`, read as a file's. Raises InputError."""
    problem, answer = config.tfds_features
    records = (
        (where, {"problem": found[problem], "answer": found[answer],
                 "solution": found.get("solution")})
        for entry in config.tfds
        for where, found in tfds.examples(entry, "maths.tfds", config.tfds_features, ("solution",))
    )
    return _distinct(records, ", ".join(config.tfds))


def _distinct(records: Iterable[tuple[str, Any]], source: str) -> list[Problem]:
    found: dict[str, Problem] = {}
    for where, record in records:
        problem = _problem(record, where)
        found.setdefault(problem.text, problem)
    if not found:
        raise InputError(f"{source}: holds no problem")
    return list(found.values())


def _records(path: Path) -> Iterator[tuple[str, Any]]:
    """(place, record), records counted from 1; of JSON lines the place is the line."""
    if read_text(path).lstrip().startswith("["):
        records = read_json(path)
        yield from ((f"{path}: record {n}", record) for n, record in enumerate(records, 1))
        return
    for where, line in read_lines(path):
        try:
            yield where, loads(line)
        except ValueError as error:
            raise InputError(f"{where}: not valid JSON: {error}") from error


def _problem(record: Any, where: str) -> Problem:
    if not isinstance(record, Mapping):
        raise InputError(f"{where}: expected an object with 'problem' and 'answer'")
    values = {}
    for key in ("problem", "answer"):
        value = record.get(key)
        if isinstance(value, int | float) and not isinstance(value, bool):
            value = str(value)
        if not isinstance(value, str) or not value.strip():
            raise InputError(f"{where}: '{key}' is {value!r}; expected text that is not empty")
        values[key] = value.strip()
    solution = record.get("solution") or ""
    if not isinstance(solution, str):
        raise InputError(f"{where}: 'solution' is {solution!r}; expected text")
    return Problem(values["problem"], values["answer"], solution)
