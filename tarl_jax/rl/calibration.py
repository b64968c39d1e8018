"""What a turn is worth, from how well its kind tells success from failure on saved episodes.

After Iterative Reward Calibration (arXiv 2604.02869): dense turn rewards that do not discriminate,
or discriminate the wrong way, cost more than they give; so a kind of turn is rewarded as it
correlates with success over rollouts, not as its designer hoped, and is calibrated anew once the
policy has changed.

Taken from there: the point-biserial correlation with success decides sign and size, and a kind
without one gets nothing. Ours: what a kind is (tool, or question or statement, with the judge's
score), that presence in an episode is what correlates, that both sides are centred by task so that
easy tasks do not vote, the threshold of two standard errors, and that the correlation itself,
divided by the largest, is the value.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from tarl_jax.config import InputError, MissingFileError
from tarl_jax.config.plain import read_json
from tarl_jax.types import Segment

MIN_EPISODES = 20  # a kind that fewer episodes have, or lack, is not judged


@dataclasses.dataclass(frozen=True)
class Kind:
    """What the rollouts say about one kind of turn.

    Attributes:
      value: of such a turn, from -1 to 1; 0 where the kind tells nothing.
      correlation: of its presence with success, both centred by task.
      episodes: that have it.
      passed, passed_without: pass rate of the episodes with it and of those without.
    """

    value: float
    correlation: float
    episodes: int
    passed: float
    passed_without: float


def turn_kind(turn: Segment) -> str:
    """The tools that an agent turn calls, or "ask" (it asks the user), "tell", "malformed"."""
    if "malformed" in turn.info:
        return "malformed"
    if turn.calls:
        return "+".join(call.name for call in turn.calls)
    return "ask" if "?" in turn.message else "tell"


def calibrate(
    kinds: Sequence[Sequence[str]],
    scores: Sequence[Sequence[int]],
    success: Sequence[bool],
    tasks: Sequence[str] | None = None,
) -> dict[str, Kind]:
    """A table from "kind:score", e.g. "ask:+1", to what such a turn is worth.

    r = sum(x y) / sqrt(sum(x^2) sum(y^2)) over episodes, x being 1 where the kind occurs and y 1
    where the episode passed, each less its mean over the task's episodes. The value is r over the
    largest |r|, or 0 where |r| < 2 / sqrt(n) or fewer than MIN_EPISODES have or lack the kind.

    Args:
      kinds, scores: per episode and turn.
      success: per episode.
      tasks: per episode the task that it played; None: one task.
    Raises: ValueError where the lengths do not match or no episode is given.
    """
    if not len(kinds) == len(scores) == len(success) > 0:
        raise ValueError(
            f"calibration of {len(kinds)} lists of kinds, {len(scores)} of scores and"
            f" {len(success)} verdicts: give as many of each, at least one"
        )
    present = [
        {f"{k}:{s:+d}" for k, s in zip(of, marks, strict=True)}
        for of, marks in zip(kinds, scores, strict=True)
    ]
    names = sorted(set().union(*present))
    passed = np.asarray(success, np.float64)
    x = np.array([[name in found for name in names] for found in present], np.float64)
    _, group = np.unique(["" for _ in passed] if tasks is None else tasks, return_inverse=True)
    of_x, of_y = _centred(x, group), _centred(passed[:, None], group)[:, 0]
    scale = np.sqrt((of_x**2).sum(axis=0) * (of_y**2).sum())
    r = np.where(scale > 1e-9, of_y @ of_x / np.maximum(scale, 1e-9), 0.0)
    count = x.sum(axis=0)
    enough = np.minimum(count, len(x) - count) >= MIN_EPISODES
    told = np.where(enough & (np.abs(r) >= 2 / np.sqrt(len(x))), r, 0.0)
    value = told / max(np.abs(told).max(initial=0.0), 1e-9)
    return {
        name: Kind(
            value=float(value[i]),
            correlation=float(r[i]),
            episodes=int(count[i]),
            passed=float(passed @ x[:, i] / max(count[i], 1)),
            passed_without=float(passed @ (1 - x[:, i]) / max(len(x) - count[i], 1)),
        )
        for i, name in enumerate(names)
    }


def _centred(x: np.ndarray, group: np.ndarray) -> np.ndarray:
    """x [n, k] less the mean of its rows' group."""
    sums = np.zeros((group.max() + 1, x.shape[1]))
    np.add.at(sums, group, x)
    return x - (sums / np.bincount(group)[:, None])[group]


def worth(
    turns: Sequence[Segment], scores: Sequence[int], table: Mapping[str, float]
) -> list[float]:
    """The values of an episode's turns; 0 for a kind that the table lacks."""
    return [
        table.get(f"{turn_kind(turn)}:{score:+d}", 0.0)
        for turn, score in zip(turns, scores, strict=True)
    ]


def save_table(path: Path, table: Mapping[str, Kind]) -> None:
    record = {name: dataclasses.asdict(kind) for name, kind in table.items()}
    path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def load_table(path: Path) -> dict[str, float]:
    """Kind to value. Raises FileNotFoundError, or ValueError for a file that is no such table."""
    if not path.is_file():
        raise MissingFileError(
            f"{path}: no such table; make one with"
            f" python -m tarl_jax.training.calibrate_turns RUN --out={path}"
        )
    try:
        record = read_json(path)
        table = {name: float(kind["value"]) for name, kind in record.items()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{path}: not a table of calibrated turns ({error}); make it anew with"
                         " python -m tarl_jax.training.calibrate_turns") from error
    wild = {name: value for name, value in table.items() if not -1 <= value <= 1}
    if wild:
        raise InputError(f"{path}: values {wild}: each must be between -1 and 1")
    return table
