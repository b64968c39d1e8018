"""A run directory has one owner, and a name of its own."""

import dataclasses
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from tarl_jax.config import ConfigError, InputError, RunConfig, from_config_dict, to_config_dict
from tarl_jax.parallel.lock import LockedError
from tarl_jax.runs import directory
from tarl_jax.runs.directory import (
    LOCK,
    changes,
    claimed_run_dir,
    open_run_dir,
    require_contents,
    require_run,
)


def test_a_second_start_on_one_directory_is_refused_by_name(tmp_path):
    config = RunConfig(workdir=str(tmp_path / "run"))
    with claimed_run_dir(config) as (path, lock):
        open_run_dir(config)
        told = pytest.raises(LockedError, match=r"run directory .*run: is in use by process")
        with told, claimed_run_dir(config):
            raise AssertionError("both have it")
        lock.require()
        assert path == tmp_path / "run" and (path / LOCK).is_file()
    assert not (path / LOCK).exists() and (path / "config.json").is_file()
    with claimed_run_dir(config):
        pass


def test_a_start_that_is_refused_takes_nothing_from_the_one_that_has_it(tmp_path, monkeypatch):
    """However their beginnings interleave: each look of the second's is before the first's."""
    config = RunConfig(workdir=str(tmp_path / "new" / "run"))
    run = tmp_path / "new" / "run"
    seen_before = directory._missing(run)
    with claimed_run_dir(config):
        open_run_dir(config)
        (run / ".config.json.host-1-2.tmp").touch()  # and is writing
        there = sorted(p.name for p in run.iterdir())
        monkeypatch.setattr(directory, "_missing", lambda path: seen_before)
        told = pytest.raises(LockedError, match="is in use by process")
        with told, claimed_run_dir(config):
            raise AssertionError("both have it")
        assert sorted(p.name for p in run.iterdir()) == there
        (run / "config.json").unlink()  # as if it had only just begun
        with pytest.raises(LockedError, match="is in use by process"), claimed_run_dir(config):
            raise AssertionError("both have it")


def test_a_kill_while_the_first_file_is_written_does_not_bar_the_next_start(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / ".config.json.host-1-2.tmp").write_text("{")
    with claimed_run_dir(RunConfig(workdir=str(run))) as (path, _):
        open_run_dir(RunConfig(workdir=str(path)))
    assert (run / "config.json").is_file()


def test_starts_in_one_second_have_directories_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def begin(_):
        with claimed_run_dir(RunConfig(name="mine")) as (path, _):
            (path / "config.json").write_text("{}")
            return path

    with ThreadPoolExecutor(8) as pool:
        paths = list(pool.map(begin, range(8)))
    assert len(set(paths)) == 8 == len(list((tmp_path / "runs").iterdir()))
    assert all(path.name.startswith("mine-20") for path in paths)


def test_nothing_is_left_of_a_start_that_came_to_nothing(tmp_path):
    config = RunConfig(workdir=str(tmp_path / "run"))
    with pytest.raises(KeyboardInterrupt), claimed_run_dir(config):
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("mine")
    other = claimed_run_dir(RunConfig(workdir=str(tmp_path / "other")))
    with pytest.raises(ConfigError, match="holds no run"), other:
        raise AssertionError
    assert [p.name for p in (tmp_path / "other").iterdir()] == ["file"]


KILLED = """
import os, sys
from tarl_jax.config import RunConfig
from tarl_jax.runs.directory import claimed_run_dir
with claimed_run_dir(RunConfig(workdir=sys.argv[1])):
    os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize("another", [True, False])
def test_a_start_that_was_moved_away_takes_nothing_from_the_one_in_its_place(tmp_path, another):
    config = RunConfig(workdir=str(tmp_path / "run"))
    with pytest.raises(InputError, match="no such file"), claimed_run_dir(config) as (path, _):
        open_run_dir(config)
        path.rename(tmp_path / "moved")
        if another:
            with claimed_run_dir(config):
                open_run_dir(config)
        raise InputError("no such file")
    assert (tmp_path / "moved/config.json").is_file()
    assert (path / "config.json").is_file() == (path / "versions.json").is_file() == another


def test_a_start_that_was_killed_at_once_does_not_bar_the_next_one(tmp_path):
    run = tmp_path / "run"
    assert subprocess.run([sys.executable, "-c", KILLED, run]).returncode == -9
    assert json.loads((run / LOCK).read_text())["process"]
    with claimed_run_dir(RunConfig(workdir=str(run))) as (path, _):
        open_run_dir(RunConfig(workdir=str(run)))
    assert (path / "config.json").is_file() and not (path / LOCK).exists()


# ---- what a run is held to --------------------------------------------------------------------


def with_fields(config, **fields):
    data = to_config_dict(config)
    data.update_from_flattened_dict(fields)
    return from_config_dict(data)


def begun(config):
    """A run directory with a checkpoint."""
    run = open_run_dir(config)
    (run / "checkpoints" / "0").mkdir(parents=True)
    return run


def test_a_start_that_came_to_nothing_fixes_nothing(tmp_path):
    """Whatever ended it: before the first checkpoint the next config is free."""
    config = RunConfig(workdir=str(tmp_path / "run"))
    run = open_run_dir(config, {"reward": {"name": "r", "source": "1"}})
    require_contents(run, {"training tasks": "a"})
    (run / "reference").mkdir()
    (run / "checkpoints" / "0.orbax-checkpoint-tmp").mkdir(parents=True)  # a kill in the first
    other = with_fields(config, **{"model.d_ff": 512, "rl.learning_rate": 1e-4})
    open_run_dir(other)
    assert json.loads((run / "config.json").read_text())["model.d_ff"] == 512
    assert not (run / "reference").exists() and not (run / "parts.json").exists()
    assert require_contents(run, {"training tasks": "b"}) == []
    (run / "checkpoints" / "0").mkdir()
    with pytest.raises(ConfigError, match=r"model\.d_ff: 512 -> 384"):
        open_run_dir(config)


def test_metrics_alone_hold_a_run_to_its_config(tmp_path):
    """Who removes checkpoints to save space loses no metrics to another config."""
    config = RunConfig(workdir=str(tmp_path / "run"))
    run = open_run_dir(config)
    (run / "metrics.jsonl").write_text("{}\n")
    with pytest.raises(ConfigError, match=r"seed: 0 -> 1"):
        open_run_dir(with_fields(config, seed=1))


@pytest.mark.parametrize("field, value", [
    ("rollout.slots", 8), ("rollout.in_flight", 7), ("rollout.parked", 3),
    ("rollout.share_prefix", 0), ("rollout.straggler_fraction", 0.1),
    ("rollout.episode_seconds", 60.0), ("rollout.step_seconds", 9.0),
    ("rl.micro_batch_tokens", 4096), ("rl.pack", False), ("rl.measure_after", False),
    ("user.max_seconds", 5.0), ("user.llm.timeout_seconds", 5.0), ("judge.max_seconds", 5.0),
    ("judge.llm.max_in_flight", 2), ("log.trajectories", 1), ("checkpoint.every", 3),
    ("mesh.rollout_tensor", 2), ("tasks.file", "moved.jsonl"), ("rl.steps", 7), ("eval.trials", 2),
])
def test_what_changes_nothing_that_is_learned_may_change(tmp_path, field, value):
    config = RunConfig(workdir=str(tmp_path / "run"))
    config = with_fields(config, **{"rollout.unfinished": "cut"})  # no episode is carried over
    run = begun(config)
    assert changes(run) == []
    open_run_dir(with_fields(config, **{field: value}))
    said = changes(run)
    assert said[0].startswith(f"config.{field}: ") and said[0].endswith(f"-> {value!r}")
    assert ("do not compare" in said[-1]) == field.startswith("eval.")
    starts = json.loads((run / "versions.json").read_text())
    assert [list(start["changed"]) for start in starts] == [[], [field]]
    open_run_dir(with_fields(config, **{field: value}))
    assert changes(run) == []


@pytest.mark.parametrize("field, value", [
    ("rl.learning_rate", 1e-5), ("rollout.temperature", 0.9), ("rollout.group_size", 4),
    ("rollout.max_turns", 9), ("tasks.seed", 3), ("user.strategy", "react"), ("model.d_ff", 512),
    ("judge.llm.model", "x"), ("sft.steps", 3), ("rollout.tasks_per_step", 8),
])
def test_what_decides_what_is_learned_may_not(tmp_path, field, value):
    config = RunConfig(workdir=str(tmp_path / "run"))
    begun(config)
    with pytest.raises(ConfigError, match=rf"{field}: .* -> {value!r}"):
        open_run_dir(with_fields(config, **{field: value}))


def test_the_contents_of_files_are_held_too(tmp_path):
    first = {"training tasks": "a", "held-out tasks": "b", "tokenizer": "c"}
    assert require_contents(tmp_path, first) == [] == require_contents(tmp_path, first)
    with pytest.raises(ConfigError, match=r"began with: training tasks, tokenizer\. What tasks"):
        require_contents(tmp_path, {**first, "training tasks": "x", "tokenizer": "y"})
    assert require_contents(tmp_path, {"tokenizer": "c"}) == []  # of an evaluation
    said = require_contents(tmp_path, {**first, "held-out tasks": "z"})
    assert said == ["the held-out tasks are others than at the last start"]
    assert require_contents(tmp_path, {**first, "held-out tasks": "z"}) == []


def test_a_checkpoint_is_read_for_other_users_and_lengths_but_of_the_same_policy(tmp_path):
    config = RunConfig(workdir=str(tmp_path / "run"))
    run = open_run_dir(config)
    assert require_run(config, run) == {}
    kept = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**kept, "rl.gone": 1}))  # of another version
    assert require_run(config, run) == {}
    other = dataclasses.replace(
        config, user=dataclasses.replace(config.user, kind="llm"),
        rollout=dataclasses.replace(config.rollout, max_turns=3),
        eval=dataclasses.replace(config.eval, trials=7),
    )
    assert require_run(other, run) == {
        "user.kind": ["scripted", "llm"], "rollout.max_turns": [config.rollout.max_turns, 3],
        "eval.trials": [config.eval.trials, 7],
    }
    for group, field, value in (("model", "d_ff", 8), ("rl", "learning_rate", 1.0)):
        changed = dataclasses.replace(getattr(config, group), **{field: value})
        with pytest.raises(ConfigError, match=rf"{group}\.{field}: .* -> {value}"):
            require_run(dataclasses.replace(config, **{group: changed}), run)


def test_a_run_says_which_files_were_not_as_committed(tmp_path, monkeypatch):
    def git(*arguments):
        named = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        subprocess.run(["git", *named, *arguments], cwd=tmp_path, check=True)

    (tmp_path / ".gitignore").write_text("runs\n")
    (tmp_path / "kept.py").write_text("1")
    git("init", "-q")
    git("add", ".")
    git("commit", "-q", "-m", "all")
    monkeypatch.setattr(directory, "__file__", str(tmp_path / "directory.py"))
    found = []
    for number, change in enumerate((lambda: None, lambda: (tmp_path / "new.py").write_text("2"))):
        change()
        config = RunConfig(workdir=str(tmp_path / "runs" / str(number)))
        open_run_dir(config)
        text = (tmp_path / "runs" / str(number) / "versions.json").read_text()
        found.append(json.loads(text)[-1])
    assert [start["uncommitted_changes"] for start in found] == [[], ["?? new.py"]]
    assert len(found[0]["commit"]) == 40
