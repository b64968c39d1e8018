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
        workdir.mkdir(parents=True, exist_ok=True)
        (workdir / "versions.json").write_text(json.dumps([{
            "commit": "c0ffee", "devices": ["1 x cpu"],
            **dict.fromkeys(("command", "platform", "folder"), "/home/ada"),
        }]))
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
    assert "/home/ada" not in results.read_text()  # a result says what made it, not where
    assert {r["versions"]["commit"] for r in found} == {"c0ffee"}
    command = next(c for c, _ in runs if f"--workdir={tmp_path}/out/tarl-1" in c)
    assert command[-2:] == ["--config.c=2", "--config.b=1"] and "--config.seed=1" in command


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


def made(arm, values, key="pass^1"):
    return [{"arm": arm, "seed": seed, "trained": {f"eval/{key}": value}, "curves": {
        "train/pass_rate": [value, value + 0.2]}} for seed, value in enumerate(values)]


def test_a_paired_difference_is_students_over_warm_starts(study):
    """By hand: gaps 0.1, 0.2, 0.3; standard error 0.1 / sqrt(3), t of two degrees 4.303."""
    results = made("stage", [0.5, 0.7, 0.6]) + made("verdict", [0.4, 0.5, 0.3, 0.9])
    found = study.paired(results, "pass^1", "stage", "verdict")
    error = 0.1 / 3**0.5
    assert found.n == 3  # the fourth has no partner
    assert found.mean == pytest.approx(0.2)
    assert (found.low, found.high) == pytest.approx((0.2 - 4.3027 * error, 0.2 + 4.3027 * error),
                                                    abs=1e-4)
    assert found.p == pytest.approx(0.0742, abs=1e-3)  # two-sided, t = 3.464
    assert found.detectable == pytest.approx((4.3027 + 1.0607) * error, abs=1e-3)
    assert study.paired(results, "area", "stage", "verdict").mean == pytest.approx(0.2)
    assert study.paired(made("stage", [0.5]) + made("verdict", [0.4]), "pass^1", "stage",
                        "verdict") is None


def test_stars_are_corrected_for_the_number_of_comparisons(study):
    """One gap beyond chance by itself is not among many: Holm's smallest p times their number."""
    results = made("verdict", [0.40, 0.41, 0.39, 0.40])
    for arm, gap in (("one", 0.021), ("two", 0.001), ("three", -0.002)):
        noise = [0.010, -0.010, 0.006, -0.006]
        results += made(arm, [0.4 + 0.01 * (i == 1) - 0.01 * (i == 2) + gap + n
                              for i, n in enumerate(noise)])
    alone = study.comparisons(results, ["pass^1"], [("one", "verdict")])
    among = study.comparisons(results, ["pass^1"],
                              [(a, "verdict") for a in ("one", "two", "three")])
    assert "*" in alone.splitlines()[2] and "*" not in among
    assert among.splitlines()[2].startswith("| one | verdict | 4 | +0.021 (")


def test_each_seed_has_a_warm_start_and_an_evaluation_of_its_own(study, runs, tmp_path):
    arms = {"grpo": study.Arm("a.py", ("config.b=1",))}
    study.make(arms, [0, 1], tmp_path / "out", tmp_path / "results.jsonl", ("config.c=2",),
               seeded=("config.warm_start.seed",), evaluation=("config.eval.trials=16",))
    commands = [c for c, _ in runs]
    assert [c[2] for c in commands] == ["tarl_jax.main", "tarl_jax.evaluate"] * 2
    for place, seed in enumerate((0, 0, 1, 1)):
        assert f"--config.warm_start.seed={seed}" in commands[place]
        assert ("--config.eval.trials=16" in commands[place]) == (place % 2 == 1)


def test_the_page_of_the_speech_study_has_what_its_raw_results_say(study):
    folder = PATH.parent / "speech"
    spec = importlib.util.spec_from_file_location("speech_study", folder / "run.py")
    speech = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(speech)
    page = (folder / "README.md").read_text("utf-8")
    results = speech.results_of(folder / "results.jsonl")
    assert results and speech.by_warm_start(results) in page and speech.gaps(results) in page


@pytest.mark.parametrize("path", sorted(PATH.parent.glob("*/**/*.jsonl")), ids=lambda p: p.stem)
def test_raw_results_are_there(study, path):
    """A file of results that was committed empty, or cut, says nothing of the page beside it."""
    assert path.read_text("utf-8").endswith("\n")
    assert study.read(path)
