"""Logs on disk: numbers per step, and the episodes they were computed from.

A run directory holds

    metrics.jsonl                    one JSON object per line: {"step", "kind", key: number, ...}
    tensorboard/                     the same numbers as TensorBoard events
    trajectories/step_000012.jsonl   training episodes of step 12, one `Trajectory` per line
    trajectories/eval_000020.jsonl   episodes of the evaluation after step 20
    trajectories/clips/              the sound in them, one FLAC file per clip

`metrics.jsonl` is the record; the TensorBoard events are a copy for looking at.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from tarl_jax.config import InputError, MissingFileError
from tarl_jax.config.plain import read_lines
from tarl_jax.parallel.files import LineFile, replace, writing
from tarl_jax.runs.tensorboard import TensorBoard

if TYPE_CHECKING:  # importing types imports jax: only the reader of trajectories needs it
    import numpy as np

    from tarl_jax.types import Trajectory

METRICS_FILE = "metrics.jsonl"
RESULTS_FILE = "results.json"  # of an evaluation on tau2-bench's tasks, as its harness writes it
TRAJECTORY_DIR = "trajectories"
CLIP_DIR = "clips"  # beside the files of episodes
TRAJECTORY_KINDS = ("step", "eval")


class MetricsWriter:
    """Appends numbers to `metrics.jsonl` and to TensorBoard; a context manager.

    Args:
      run_dir: made if it does not exist.
      resume_step: the step of the checkpoint that the run continues from. Lines of later steps
        are dropped, because the run will write them again; lines of exactly `resume_step` stay,
        whatever their kind: its training line and its evaluation ("eval", "base") were written
        before the checkpoint. Step 0 is what precedes the first update, so 0 keeps the base
        evaluation and -1 starts over. None keeps every line and appends.

    Either way an unfinished last line, which a killed run leaves, is dropped, and with a
    `resume_step` the episodes that no line belongs to. Raises ValueError if any other line is
    broken, WriteError where the disk is full or the file is no longer this writer's.
    """

    def __init__(self, run_dir: str | os.PathLike[str], resume_step: int | None = None):
        run_dir = Path(run_dir)
        with writing(run_dir):
            run_dir.mkdir(parents=True, exist_ok=True)
        self.path = run_dir / METRICS_FILE
        if self.path.exists():
            _drop_lines(self.path, resume_step)
        if resume_step is not None:
            _drop_episodes(run_dir)
        self._lines = LineFile(self.path)
        self._tensorboard = TensorBoard(
            run_dir / "tensorboard", None if resume_step is None else resume_step + 1
        )

    def write(self, step: int, kind: str, values: Mapping[str, float]) -> None:
        """Appends one line, which is on the disk then.

        A value that is not finite is written as null, and is a gap in TensorBoard.

        Args:
          step: RL steps finished. Clocks of another meaning (warm-start steps) belong in a value,
            because resuming drops lines by this number.
          kind: what the line is about: "train", "eval", "base".
          values: numbers by key; scalars of NumPy and JAX are converted.

        Raises ValueError for a key that the line itself uses, TypeError for a value that is no
        number.
        """
        numbers = {}
        for key, value in values.items():
            if key in ("step", "kind"):
                raise ValueError(f"metric key '{key}' is taken by the line itself: rename it")
            try:
                numbers[key] = float(value)
            except (TypeError, ValueError) as error:
                raise TypeError(f"metric {key} = {value!r}: expected a number") from error
        # JSON has no NaN: readers in other languages would reject the whole line.
        finite = {key: x if math.isfinite(x) else None for key, x in numbers.items()}
        record = {"step": int(step), "kind": kind, **finite}
        self._lines.add(json.dumps(record, allow_nan=False))
        self._tensorboard.write(
            int(step), {key: x for key, x in finite.items() if x is not None}
        )

    def close(self) -> None:
        self._lines.close()
        self._tensorboard.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def read_metrics(run_dir: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl` in order; null values are None.

    An unfinished last line (the run is writing it, or was killed there) is left out. Raises
    FileNotFoundError if there is no such file, ValueError naming file and line for a broken one.
    """
    path = Path(run_dir) / METRICS_FILE
    if not path.is_file():
        raise MissingFileError(f"{path}: no such file; is {run_dir} the directory of a run?")
    return [record for _, record in _parse(path)]


def append_trajectories(
    run_dir: str | os.PathLike[str],
    step: int,
    trajectories: Iterable[Trajectory],
    kind: str = "step",
) -> Path:
    """Adds one file of episodes to the run, whole or not at all, and returns its path.

    Args:
      kind: "step" for training episodes, "eval" for those of the evaluation after `step`.

    A file of the same step and kind, from before a resume, is replaced. Clips come first, so that
    no line names one that is not there. Raises SpeechError where they need a package that is not.
    """
    path = _trajectory_dir(run_dir, kind) / f"{kind}_{step:06d}.jsonl"
    write_trajectories(path, trajectories)
    return path


def write_trajectories(path: Path, trajectories: Iterable[Trajectory]) -> None:
    """Writes the file of `read_trajectories`, and the clips beside it, as `append_trajectories`."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    trajectories = list(trajectories)
    if clips := [sound.clip for t in trajectories for sound in t.sounds()]:
        from tarl_jax.speech.clips import save_clips

        save_clips(path.parent / CLIP_DIR, clips)
    replace(path, "".join(t.to_json_line() + "\n" for t in trajectories))


def trajectory_files(run_dir: str | os.PathLike[str], kind: str = "step") -> dict[int, Path]:
    """The run's files of episodes by step, in order of step; empty if there are none."""
    pattern = re.compile(rf"{kind}_(\d+)\.jsonl")
    directory = _trajectory_dir(run_dir, kind)
    names = os.listdir(directory) if directory.is_dir() else []
    found = {int(m.group(1)): directory / name for name in names if (m := pattern.fullmatch(name))}
    return dict(sorted(found.items()))


def read_trajectories(path: str | os.PathLike[str]) -> list[Trajectory]:
    """The episodes of one file. Raises ValueError naming file and line where one is broken.

    The sound in them comes from the clips beside it; raises SpeechError where one is missing or
    broken, or reading it needs a package that is not there.
    """
    from tarl_jax.types import Trajectory

    def clip_of(name: str) -> np.ndarray:
        from tarl_jax.speech.clips import load_clip

        return load_clip(Path(path).parent / CLIP_DIR / name)

    trajectories = []
    for where, line in read_lines(Path(path)):
        try:
            trajectories.append(Trajectory.from_json_line(line, clip_of))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise InputError(f"{where}: not a trajectory ({reason})") from error
    return trajectories


def _trajectory_dir(run_dir: str | os.PathLike[str], kind: str) -> Path:
    if kind not in TRAJECTORY_KINDS:
        raise ValueError(f"trajectories of kind '{kind}': choose one of {TRAJECTORY_KINDS}")
    return Path(run_dir) / TRAJECTORY_DIR


def _parse(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """(text, record) per line; an unfinished last line is left out."""
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    last = lines.pop()  # what follows the last newline: nothing, or a line cut short
    parsed = [(line, _record(line, f"{path}:{number}")) for number, line in enumerate(lines, 1)]
    # A line cut short is never valid JSON, for its closing brace is missing; a valid one lost
    # only its newline.
    with contextlib.suppress(ValueError):
        parsed.append((last, _record(last, str(path))))
    return parsed


def _record(line: str, where: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
        int(record["step"])
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise InputError(
            f"{where}: not a JSON object with a step ({reason}); mend or delete the line"
        ) from error
    return record


def _drop_lines(path: Path, resume_step: int | None) -> None:
    """Rewrites the file without lines after `resume_step` and without an unfinished line."""
    last = math.inf if resume_step is None else resume_step
    replace(path, "".join(f"{text}\n" for text, r in _parse(path) if r["step"] <= last))


def _drop_episodes(run_dir: Path) -> None:
    """Deletes episodes whose line is not there: a kill came between them, or the line was dropped.

    Episodes are written before their line, so that no line is without them.
    """
    path = run_dir / METRICS_FILE
    records = [record for _, record in _parse(path)] if path.exists() else []
    for kind in TRAJECTORY_KINDS:
        there = {r["step"] for r in records if (r.get("kind") == "train") == (kind == "step")}
        for step, file in trajectory_files(run_dir, kind).items():
            if step not in there:
                file.unlink(missing_ok=True)
