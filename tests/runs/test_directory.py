"""A run directory has one owner, and a name of its own."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from tarl_jax.config import ConfigError, RunConfig
from tarl_jax.parallel.lock import LockedError
from tarl_jax.runs.directory import LOCK, claimed_run_dir, open_run_dir


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


def test_a_start_that_was_killed_at_once_does_not_bar_the_next_one(tmp_path):
    run = tmp_path / "run"
    assert subprocess.run([sys.executable, "-c", KILLED, run]).returncode == -9
    assert json.loads((run / LOCK).read_text())["process"]
    with claimed_run_dir(RunConfig(workdir=str(run))) as (path, _):
        open_run_dir(RunConfig(workdir=str(run)))
    assert (path / "config.json").is_file() and not (path / LOCK).exists()
