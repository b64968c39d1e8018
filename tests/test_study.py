"""What experiments share: which runs are made, on which cores, and what is said of them."""

import importlib.util
import json
import os
import statistics
import subprocess
import sys
import threading
from pathlib import Path

import pytest

PATH = Path(__file__).parents[1] / "experiments/study.py"


@pytest.fixture
def study(monkeypatch):
    spec = importlib.util.spec_from_file_location("study", PATH)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "study", module)  # where its dataclass looks for its types
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def runs(study, monkeypatch):
    """Runs that would have been made, and the cores of each; they leave a run's files behind."""
    made = []

    def run(command, check, cwd, **_):
        workdir = next(Path(c.partition("=")[2]) for c in command if c.startswith("--workdir="))
        cores = frozenset(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
        made.append((command, cores))
        if "broken" in workdir.name:
            raise subprocess.CalledProcessError(1, command)
        workdir.mkdir(parents=True)
        (workdir / "versions.json").write_text(json.dumps([{"command": "", "platform": ""}]))
        step = {"kind": "train", "compilations": 0, "seconds/rollout": 2.0, "seconds/update": 1.0,
                "seconds/step": 3.0, **dict.fromkeys(study.CURVES, 0.5)}
        (workdir / "metrics.jsonl").write_text(json.dumps(step) + "\n")
        seed = int(workdir.name[-1])
        figures = {"eval/pass^1": 0.4 + 0.1 * seed + ("tarl" in workdir.name) * (0.1 + 0.1 * seed)}
        (workdir / "summary.json").write_text(json.dumps({"base": figures, "trained": figures}))

    monkeypatch.setattr(study.subprocess, "run", run)
    return made


@pytest.mark.parametrize("jobs", [1, 2])
def test_what_has_a_result_is_not_made_again(study, runs, tmp_path, jobs):
    arms = {"grpo": study.Arm("configs/grpo.py"), "tarl": study.Arm("a.py", ("config.b=1",))}
    results = tmp_path / "results.jsonl"
    study.make(arms, [0], tmp_path / "out", results, ("config.c=2",), jobs)
    found = study.make(arms, [0, 1], tmp_path / "out", results, ("config.c=2",), jobs)
    assert {(r["arm"], r["seed"]) for r in found} == {
        ("grpo", 0), ("grpo", 1), ("tarl", 0), ("tarl", 1)
    }
    assert len(runs) == 4
    command = next(c for c, _ in runs if f"--workdir={tmp_path}/out/tarl-1" in c)
    assert command[-2:] == ["--config.b=1", "--config.c=2"] and "--config.seed=1" in command


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="cores are given on Linux alone")
def test_runs_at_a_time_have_cores_of_their_own(study, runs, tmp_path):
    cores = os.sched_getaffinity(threading.main_thread().native_id)
    arms = {"a": study.Arm("a.py"), "b": study.Arm("b.py")}
    study.make(arms, [0, 1], tmp_path / "out", tmp_path / "results.jsonl", (), 2)
    shares = {share for _, share in runs}
    assert frozenset().union(*shares) == cores
    if len(cores) > 1:
        assert len(shares) <= 2 and all(len(share) < len(cores) for share in shares)
    assert os.sched_getaffinity(0) == cores  # of this thread they are not changed


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_run_that_fails_ends_the_study(study, runs, tmp_path, jobs):
    arms = {"broken": study.Arm("a.py"), "b": study.Arm("b.py")}
    with pytest.raises(subprocess.CalledProcessError):
        study.make(arms, [0, 1, 2, 2], tmp_path / "out", tmp_path / "results.jsonl", (), jobs)
    assert len(runs) <= jobs  # what was under way is finished, nothing more is begun


def test_means_are_of_the_seeds_and_differences_of_pairs(study, runs, tmp_path):
    arms = {"grpo": study.Arm("a.py"), "tarl": study.Arm("b.py")}
    found = study.make(arms, [0, 1], tmp_path / "out", tmp_path / "results.jsonl", ())
    rows = study.means(found, ["pass^1"]).splitlines()
    assert rows[2:] == ["| grpo | 2 | 0.45 (0.4 to 0.5) |", "| tarl | 2 | 0.6 (0.5 to 0.7) |"]
    first = [r for r in found if r["seed"] == 0]
    assert study.means(first, ["pass^1"]).splitlines()[2] == "| grpo | 1 | 0.4 |"
    pairs = [("tarl", "grpo"), ("tarl", "absent")]
    error = statistics.stdev([0.1, 0.2]) / 2**0.5
    rows = study.differences(found, ["pass^1"], pairs).splitlines()
    assert rows[2:] == [f"| tarl | grpo | 2 | +0.150 ± {error:.3f} |"]
    assert study.differences(first, ["pass^1"], pairs).splitlines()[2:] == [
        "| tarl | grpo | 1 | +0.100 |"]
