"""Tests judges on saved episodes, before any training is spent on their scores.

    python -m tarl_jax.judge.calibrate RUN_OR_FILE [--judge saved --judge rules --judge FILE.json]

    python -m tarl_jax.judge.calibrate --users [FILE.json] [RUN]

compares a user that a language model plays with the scripted one of the same embedded tasks,
whose word is the truth (`judge/user_truth.py`): what the model does wrong, and how much of it the
check of users finds. FILE.json holds the config group `user`; without it the run's own is taken.

A judge is "saved" (the scores that the episodes were saved with), "rules", or a JSON file of the
config group `judge`, such as {"kind": "llm", "llm": {"model": "gpt-4.1", "max_calls": 200}}. Of
each the command tells what its scores would teach, how often the request ended right behind each of
its notes, and what that is in bits per turn; of two or more how far the others agree with the
first, and with --repeats how far each agrees with itself.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path

from tarl_jax.config import ConfigError, InputError, JudgeConfig, RewardConfig, from_config_dict
from tarl_jax.config.fields import nested
from tarl_jax.config.plain import read_json
from tarl_jax.judge.agreement import Scores, consistency
from tarl_jax.judge.incentive import Group, incentive, pass_rates
from tarl_jax.judge.information import Remark, bits, plain, rates
from tarl_jax.judge.report import Opinion, draw, show
from tarl_jax.judge.rules import Judgement
from tarl_jax.judge.service import Judge
from tarl_jax.judge.user_truth import compare, summary
from tarl_jax.llm.errors import LLMError
from tarl_jax.runs.metrics import read_trajectories, trajectory_files
from tarl_jax.sandbox.desks import DESKS
from tarl_jax.sandbox.llm_user import LLMUsers
from tarl_jax.sandbox.published import embedded_domain
from tarl_jax.sandbox.tasks import make_tasks
from tarl_jax.training.stages import stages_of
from tarl_jax.types import Trajectory

SAVED = "saved"
Asking = list[Judgement | None]  # per episode; None: the judge abstained


def load_groups(path: Path, kind: str, last: int, episodes: int) -> list[list[Trajectory]]:
    """The tool episodes of a run or a file, those of a task in one file as one group.

    Args:
      kind: of files of a run: "step" or "eval". last: the last so many of them; 0: all.
      episodes: whole groups in order, as long as they have at most so many; 0: all.
    Raises ValueError where there is none, OSError where a file cannot be read.
    """
    files = [path] if path.is_file() else list(trajectory_files(path, kind).values())[-last:]
    groups = [
        list(group) for file in files
        for _, group in itertools.groupby(
            (t for t in read_trajectories(file) if t.task.kind == "tool"),
            key=lambda t: t.task.task_id,
        )
    ]
    if episodes:
        ends = itertools.accumulate(map(len, groups))
        groups = [g for g, end in zip(groups, ends, strict=True) if end <= episodes]
    if not groups:
        raise InputError(f"{path}: holds no episode of a task with tools to judge")
    return groups


def load_judge(name: str) -> JudgeConfig:
    """The config that a name stands for, "saved" apart. Raises ConfigError, ValueError, OSError."""
    group = {"kind": name} if name == "rules" else read_json(Path(name), dict)
    return from_config_dict({"judge": group}).judge


def load_reward(path: Path) -> RewardConfig:
    """The reward of the run that the episodes are from; the default's where that is not known."""
    record = path / "config.json"
    flat = read_json(record, dict) if record.is_file() else {}
    names = (f.name for f in dataclasses.fields(RewardConfig))
    return RewardConfig(**{n: flat[f"reward.{n}"] for n in names if f"reward.{n}" in flat})


def judged(
    name: str, trajectories: Sequence[Trajectory], folder: Path, repeats: int
) -> list[Asking]:
    """Per asking, per episode its judgement. Raises as `load_judge` and `Judge` do."""
    if name == SAVED:
        return [[_saved(t) for t in trajectories]]
    with Judge(load_judge(name), folder) as judge:
        judge.check()
        askings = [judge.judge_all(trajectories, repeat=i) for i in range(repeats)]
        counts = {k: v for k, v in judge.counts().items() if v}
    if counts:
        print(f"{name}: " + ", ".join(f"{k} {v:.6g}" for k, v in sorted(counts.items())))
    return askings


def remarks(trajectories: Sequence[Trajectory], judgements: Asking) -> list[Remark]:
    """Of every turn that belongs to a request, of the episodes that were judged and did not break.

    A request, of a task without a script, is what `training.stages` takes for one.
    """
    return [
        Remark(t.task.task_id, stage.right, j.scores[turn], j.minors[turn], plain(j.notes[turn]))
        for t, j in zip(trajectories, judgements, strict=True)
        if j is not None and t.success is not None
        for stage in stages_of(t)[0] for turn in stage.turns
    ]


def opinion(
    name: str, askings: list[Asking], groups: Sequence[Sequence[Trajectory]],
    reward: RewardConfig,
) -> Opinion:
    """Of the first asking, but for the agreement of all of them."""
    judgements = iter(askings[0])
    pairs: list[Group] = [[(t, next(judgements)) for t in group] for group in groups]
    incentives = {}
    for denominator in ("expert", "taken"):
        config = dataclasses.replace(reward, denominator=denominator)
        incentives[denominator] = (incentive(pairs, config), incentive(pairs, config, failing=True))
    scores: list[list[Scores]] = [[j.scores if j else None for j in asking] for asking in askings]
    said = remarks([t for group in groups for t in group], askings[0])
    return Opinion(
        name, scores[0], pass_rates(pairs), incentives,
        consistency(scores) if len(askings) > 1 else None,
        rates(said), bits(said, lambda r: r.grade), bits(said, lambda r: (r.grade, r.note)),
    )


def _saved(trajectory: Trajectory) -> Judgement | None:
    scores = trajectory.turn_scores
    if scores is None:
        return None
    notes = trajectory.judge_notes or [""] * len(scores)
    return Judgement(scores, notes, trajectory.turn_minors or [])


def compare_users(path: Path | None, file: str, episodes: int) -> dict[str, dict[str, float]]:
    """Plays held-out embedded tasks to the user of a file, or of the run at `path`.

    episodes: so many of them; 0: all. Raises ConfigError for a user that no language model plays,
    InputError for tasks without scripts, and LLMError.
    """
    record = path / "config.json" if path and path.is_dir() else None
    kept = nested(read_json(record, dict)) if record and record.is_file() else {}
    config = from_config_dict(kept)
    user = from_config_dict({"user": read_json(Path(file), dict)}).user if file else config.user
    if user.kind != "llm":
        raise ConfigError(f"config.user.kind = {user.kind!r}: give --users FILE.json with"
                          ' {"kind": "llm", "llm": {"model": …}}')
    if config.sandbox.data or config.sandbox.domain not in DESKS:
        raise InputError("--users: tasks of a folder have no scripts to compare with: leave RUN out"
                         " for the embedded shop")
    domain = embedded_domain(config.sandbox.domain, config.shop)
    count = episodes or min(config.tasks.num_held_out, 200)
    tasks = make_tasks(
        domain, config.shop, dataclasses.replace(config.tasks, num_held_out=count), "held_out"
    )
    users = LLMUsers(user)
    try:
        users.check()
        return summary(compare(domain, tasks, users.user, workers=user.llm.max_in_flight))
    finally:
        users.close()


def _show_users(found: dict[str, dict[str, float]]) -> None:
    from rich.console import Console
    from rich.table import Table

    titles = {"user": "The user, by its script: share of episodes",
              "same": "Messages in which it does as the script, by what the script does",
              "check": "The check of users: share of faults found, of right episodes blamed"}
    for name, title in titles.items():
        table = Table("", "share", title=title, title_justify="left")
        for key, value in found[name].items():
            table.add_row(key, f"{value:.3f}")
        Console().print(table)


def main(arguments: Sequence[str] | None = None) -> int:
    given = _parser().parse_args(arguments)
    if given.users is not None:
        try:
            _show_users(compare_users(given.path, given.users, given.episodes))
        except (ConfigError, LLMError, ValueError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        return 0
    if given.path is None:
        print("error: name a run or a file of episodes, or give --users", file=sys.stderr)
        return 2
    path: Path = given.path
    home = path.parent if path.is_file() else path
    try:
        kind = "eval" if given.eval else "step"
        groups = load_groups(path, kind, given.last, given.episodes)
        trajectories = [t for group in groups for t in group]
        reward = load_reward(path)
        opinions = [
            opinion(name, judged(name, trajectories, home / "judge", given.repeats), groups, reward)
            for name in given.judge or [SAVED]
        ]
    except (ConfigError, LLMError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    show(opinions, [t.success for t in trajectories])
    picture = given.plot or home / "judges.png"
    draw(opinions, picture)
    print(f"wrote {picture}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tarl_jax.judge.calibrate", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--users", nargs="?", const="", metavar="FILE.json",
                        help="compare a user that is a language model with the scripted one")
    parser.add_argument("path", metavar="RUN_OR_FILE", type=Path, nargs="?",
                        help="directory of a run, or a .jsonl file of trajectories")
    parser.add_argument("--judge", action="append", metavar="JUDGE",
                        help="saved, rules or a JSON file; several times for several (default:"
                        " saved)")
    parser.add_argument("--repeats", type=int, default=1, help="how often each judge is asked")
    parser.add_argument("--eval", action="store_true", help="a run's evaluations, not its training")
    parser.add_argument("--last", type=int, default=0, help="a run's last so many files; 0: all")
    parser.add_argument("--episodes", type=int, default=0, help="whole groups, up to so many"
                        " episodes; 0: all")
    parser.add_argument("--plot", type=Path, help="the picture (default: judges.png beside)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
