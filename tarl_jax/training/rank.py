"""Ranks ways of crediting turns on saved groups of episodes, before any training, in seconds.

    python -m tarl_jax.training.rank RUN_OR_FILE [--judge saved|rules|FILE.json] [--config FILE.py]

For each way: how well does the gradient of --groups groups point where the pass rate grows? A
tabular policy stands for the model (`training/tabular.py`), the direction comes from tasks that the
gradient did not see (`training/gradient_signal.py`), and the advantages are those of training,
`training/credit.py`. --config adds a way of your own: the groups `reward` and `rl` of its
get_config(), and `reward` and `advantage` of its get_parts(). Not asked: the loss, its mean and
clipping, `tis_cap`, a KL penalty. All groups count as one step where a way normalises by the batch.
docs/credit.md says what the columns mean.
"""

from __future__ import annotations

import argparse
import collections
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from tarl_jax.config import InputError, MissingFileError
from tarl_jax.judge.calibrate import SAVED, load_groups, load_judge
from tarl_jax.judge.incentive import right_share
from tarl_jax.judge.service import Judge
from tarl_jax.parallel.process import exit_status
from tarl_jax.rl.calibration import calibrate, turn_kind
from tarl_jax.training.credit import assign
from tarl_jax.training.gradient_signal import estimates, make_design, signal
from tarl_jax.training.rank_table import Ranking, Row, show
from tarl_jax.training.rewarding import rewarded
from tarl_jax.training.tabular import Turns, gradients, read_turns
from tarl_jax.training.ways import Candidate, Groups, candidates
from tarl_jax.types import Trajectory


def rank(groups: Groups, take: int, draws: int, seed: int, own: Sequence[Path] = ()) -> Ranking:
    """Ranks WAYS and those of config files on groups of one size.

    Args:
      take: groups of a gradient. draws: per half. own: config files.
    Raises InputError where the groups cannot tell anything.
    """
    mixed = _check(groups, take)
    turns = read_turns(groups)
    design = make_design([g[0].task.task_id for g in groups], take, draws, seed)
    ways, left_out = candidates(groups, own)
    goals = _goals_right(groups)
    references = [_gradient(turns, values, len(groups))
                  for values in (_verdict(groups), goals) if values is not None]
    tables = [_table([groups[g] for g in other]) for _, other in design.halves]
    bases: list[np.ndarray] = []
    rows = []
    for name, candidate in ways.items():
        of = tables if candidate.made else [candidate.table]
        found, share = _credited(groups, turns, candidate, of)
        numbers = estimates(design, found, references)
        bases = bases or numbers  # the baseline comes first
        toward = [signal(*pair) for pair in zip(numbers, bases, strict=True)]
        rows.append(Row(name, toward[0], toward[1] if toward[1:] else None, share, candidate.needs))
    rows.sort(key=lambda row: -np.nan_to_num(row.signal.equivalent, nan=-np.inf))
    episodes = [t for g in groups for t in g]
    facts = {
        "groups": len(groups), "group_size": len(groups[0]), "mixed_groups": mixed,
        "pass_rate": float(np.mean([bool(t.success) for t in episodes])),
        "judged": float(np.mean([t.turn_scores is not None for t in episodes])),
        "states": turns.policy.states, "cells": len(turns.policy.state),
        "groups_per_gradient": take, "draws": draws, "seed": seed,
    }
    return Ranking(rows, left_out, facts)


def _check(groups: Groups, take: int) -> int:
    """How many groups are mixed. Raises InputError where there are too few to halve."""
    if not any(t.success for g in groups for t in g):
        raise InputError(
            f"all episodes of all {len(groups)} groups fail: nothing shows where the pass rate"
            " grows; give easier tasks, or more episodes of a better policy"
        )
    mixed = [g[0].task.task_id for g in groups
             if {bool(t.success) for t in g if t.success is not None} == {False, True}]
    if len(set(mixed)) < 2:
        raise InputError(
            f"{len(mixed)} of {len(groups)} groups hold both a pass and a failure: a direction and"
            " its test need at least 2, of different tasks; give more episodes"
        )
    tasks = collections.Counter(g[0].task.task_id for g in groups)
    least = sum(sorted(tasks.values())[: len(tasks) // 2])  # groups of the smaller half
    if not 0 < take <= least:
        raise InputError(
            f"--groups {take}: {len(groups)} groups of {len(tasks)} tasks, halved by task, leave"
            f" {least} to draw from: give at least 1 and at most that many, or more episodes"
        )
    return len(mixed)


# ---- gradients -------------------------------------------------------------------------------


def _credited(
    groups: Groups, turns: Turns, candidate: Candidate, tables: Sequence[Mapping[str, float] | None]
) -> tuple[list[np.ndarray], float]:
    """Per table the gradients [groups, cells]; the share of groups with signal."""
    episodes = [t for g in groups for t in g]
    found, shares = [], []
    for table in tables:
        rewarded(episodes, candidate.config, table, candidate.parts.reward)
        credit = assign(episodes, candidate.config, {}, table, {}, candidate.parts.advantage)
        advantages = turns.mean_over_tokens(credit.advantages)
        found.append(gradients(turns.policy, advantages, turns.group, len(groups)))
        taught = np.bincount(turns.group, np.abs(advantages) > 1e-9, len(groups))
        shares.append(float(np.mean(taught > 0)))
    return found, float(np.mean(shares))


def _table(groups: Groups) -> dict[str, float]:
    """Of calibrated turns; as `training.calibrate_turns` makes it."""
    judged = [t for g in groups for t in g if t.turn_scores is not None and t.success is not None]
    if not judged:
        return {}
    table = calibrate(
        [[turn_kind(turn) for turn in t.turns] for t in judged],
        [t.turn_scores or [] for t in judged],
        [bool(t.success) for t in judged],
        [t.task.task_id for t in judged],
    )
    return {name: kind.value for name, kind in table.items()}


# ---- the directions -------------------------------------------------------------------------


def _gradient(turns: Turns, values: np.ndarray, groups: int) -> np.ndarray:
    """[groups, cells] of episodes' values [groups, G], less their group's mean, on all turns."""
    centred = values - np.nanmean(values, axis=1, keepdims=True)
    centred = np.nan_to_num(centred).reshape(-1)
    return gradients(turns.policy, turns.mean_over_tokens(list(centred)), turns.group, groups)


def _verdict(groups: Groups) -> np.ndarray:
    """[groups, G]; NaN where the infrastructure broke an episode, or all of its group."""
    return _by_group(groups, [None if t.success is None else float(t.success)
                              for g in groups for t in g])


def _goals_right(groups: Groups) -> np.ndarray | None:
    """[groups, G] share of what the gold calls change that ended right; None where nobody can tell.

    Where they change nothing, the verdict.
    """
    try:
        return _by_group(groups, [
            None if t.success is None
            else float(t.success) if (share := right_share(t)) is None else share
            for g in groups for t in g
        ])
    except ValueError:  # an own domain whose diff names no records
        return None


def _by_group(groups: Groups, values: Sequence[float | None]) -> np.ndarray:
    table = np.array(values, np.float64).reshape(len(groups), -1)
    return np.where(np.isnan(table).all(axis=1, keepdims=True), 0.0, table)


# ---- the command ----------------------------------------------------------------------------


def load(path: Path, kind: str, last: int) -> tuple[list[list[Trajectory]], int]:
    """(groups of the size that most have, how many episodes are left out for another size).

    Raises InputError where there is no group, or where they are of one episode.
    """
    found = load_groups(path, kind, last, 0)
    size = collections.Counter(map(len, found)).most_common(1)[0][0]
    if size < 2:
        raise InputError(
            f"{path}: groups of one episode have nothing to compare: give a run with"
            " rollout.group_size above 1 (or --eval and eval.trials), whose log.trajectories keep"
            " whole groups"
        )
    whole = [g[i : i + size] for g in found if len(g) % size == 0 for i in range(0, len(g), size)]
    return whole, sum(map(len, found)) - size * len(whole)


def judge_anew(name: str, groups: Groups, folder: Path) -> None:
    """Scores and notes of the judge that `name` stands for, in place; "saved" leaves them."""
    if name == SAVED:
        return
    episodes = [t for g in groups for t in g]
    with Judge(load_judge(name), folder) as judge:
        judge.check()
        judgements = judge.judge_all(episodes)
    for t, judgement in zip(episodes, judgements, strict=True):
        t.turn_scores = judgement.scores if judgement else None
        t.judge_notes = judgement.notes if judgement else []
        t.turn_minors = judgement.minors if judgement else None


def main(arguments: Sequence[str] | None = None) -> int:
    given = _parser().parse_args(arguments)
    return exit_status(lambda: _rank(given), given.debug)


def _rank(given: argparse.Namespace) -> None:
    path: Path = given.path
    if not path.exists():
        raise MissingFileError(f"{path}: no such run or file")
    groups, odd = load(path, "eval" if given.eval else "step", given.last)
    try:
        judge_anew(given.judge, groups, (path.parent if path.is_file() else path) / "judge")
    except OSError as error:
        raise MissingFileError(f"--judge {given.judge}: {error}") from error
    ranking = rank(groups, given.groups, given.draws, given.seed, given.config or ())
    ranking.facts.update(path=str(path), judge=given.judge, episodes_left_out=odd)
    show(ranking)
    if given.out:
        text = json.dumps(ranking.to_json(), indent=2, allow_nan=False)
        given.out.write_text(text + "\n", encoding="utf-8")
        print(f"wrote {given.out}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tarl_jax.training.rank", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("path", metavar="RUN_OR_FILE", type=Path,
                        help="directory of a run, or a .jsonl file of trajectories")
    parser.add_argument("--judge", default=SAVED, help="saved, rules or a JSON file of the config"
                        " group judge (default: saved)")
    parser.add_argument("--config", action="append", type=Path, metavar="FILE.py",
                        help="one more way, that of a config file; several times for several")
    parser.add_argument("--eval", action="store_true", help="a run's evaluations, not its training")
    parser.add_argument("--last", type=int, default=0, help="a run's last so many files; 0: all")
    parser.add_argument("--groups", type=int, default=16, help="groups of a gradient: a step's")
    parser.add_argument("--draws", type=int, default=200, help="gradients per half of the tasks")
    parser.add_argument("--seed", type=int, default=0, help="of halves and draws")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="the rows as JSON")
    parser.add_argument("--debug", action="store_true", help="show the traceback of every error")
    return parser


if __name__ == "__main__":
    sys.exit(main())
