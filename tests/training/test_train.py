"""The commands as a user runs them: a whole run, its end by every kind of accident, its resumption.

Runs are small, yet the episodes of a group differ in reward, so that updates change the parameters.
Most tests look at one finished run; all runs share one warm start.
"""

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp
import pytest
from documented import undocumented

from tarl_jax.config import (
    CheckpointConfig,
    ConfigError,
    MeshConfig,
    RunConfig,
)
from tarl_jax.parallel.process import exit_status
from tarl_jax.runs.checkpoint import Checkpoints
from tarl_jax.runs.directory import open_run_dir
from tarl_jax.runs.metrics import read_metrics, read_trajectories, trajectory_files
from tarl_jax.runs.stopping import Interrupted, StopRequest

ROOT = Path(__file__).parents[2]
STEPS = 4
SMALL = {
    "model.num_layers": 1,
    "warm_start.steps": 200,  # enough for some of its turns to earn a score
    "warm_start.episodes": 200,
    "rollout.slots": 2,
    "rollout.max_episode_tokens": 256,
    "rollout.tasks_per_step": 2,
    "rollout.group_size": 8,
    "reward.placement": "trajectory",
    "reward.max_majors": 8,  # more deviations cost more: the episodes of a group differ
    "rl.steps": STEPS,
    "rl.learning_rate": 1e-3,
    "rl.micro_batch_tokens": 256,
    "eval.every": 2,
    "eval.tasks": 2,
    "eval.final_tasks": 3,
    "eval.trials": 2,
    "checkpoint.every": 2,
    "checkpoint.keep": 3,
}
KEYS = {
    "reward/mean", "reward/terminal", "reward/turns", "reward/major", "train/pass_rate",
    "train/clean_pass", "judge/major_share", "judge/abstained", "rollout/turns",
    "rollout/episode_tokens", "rollout/tokens_per_second", "rl/zero_variance_groups", "rl/loss",
    "rl/kl", "rl/entropy", "rl/clip_fraction", "rl/clip_fraction_after", "rl/grad_norm",
    "rl/log_prob_gap",
    "seconds/rollout", "seconds/judge", "seconds/update", "seconds/step", "compilations",
}  # fmt: skip


class Command:
    """`python -m module …`, its output in files."""

    def __init__(self, folder: Path, module: str, *arguments: str):
        folder.mkdir(parents=True, exist_ok=True)
        self.out, self.err = folder / "out.txt", folder / "err.txt"
        with self.out.open("w") as out, self.err.open("w") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-m", module, *arguments], cwd=ROOT, stdout=out, stderr=err
            )

    def wait(self) -> int:
        return self.process.wait(timeout=400)

    @property
    def stdout(self) -> str:
        return self.out.read_text()

    @property
    def stderr(self) -> str:
        return self.err.read_text()

    def wait_for_step(self, run: Path, step: int) -> None:
        """Until the run has logged that training step."""
        deadline = time.monotonic() + 400
        while self.process.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(FileNotFoundError):
                if step in train_steps(run):
                    return
            time.sleep(0.01)
        raise AssertionError(f"step {step} not seen; code {self.process.poll()}\n{self.stderr}")


@pytest.fixture(scope="module")
def start(tmp_path_factory, cache_dir):
    """Starts a command on a run directory with the config SMALL, updated."""
    running = []

    def go(run: Path, module="tarl_jax.main", config="grpo_tarl", flags=(), **changes) -> Command:
        values = {**SMALL, "warm_start.cache_dir": cache_dir, **changes}
        command = Command(
            tmp_path_factory.mktemp("output"),
            module,
            f"--config={ROOT / 'configs' / config}.py:tiny",
            f"--workdir={run}",
            *(f"--config.{key}={value}" for key, value in values.items()),
            *flags,
        )
        running.append(command.process)
        return command

    yield go
    for process in running:
        process.kill()


def train_steps(run: Path) -> list[int]:
    return [r["step"] for r in read_metrics(run) if r["kind"] == "train"]


def checkpoint_steps(run: Path) -> list[int]:
    checkpoints = Checkpoints(run, CheckpointConfig())
    checkpoints.close()
    return checkpoints.steps


def read_state(run: Path, step: int) -> dict[str, np.ndarray]:
    """Every array of a checkpoint by its name."""
    import jax

    with ocp.StandardCheckpointer() as checkpointer:
        tree = checkpointer.restore((run / "checkpoints" / str(step) / "state").absolute())
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): np.array(x) for path, x in leaves}


def one_message(command: Command) -> str:
    """What standard error ends with: one message, and no traceback anywhere.

    XLA may write log lines before it, e.g. that a busy machine compiles slowly.
    """
    text = command.stderr
    assert "Traceback" not in text and "Exception ignored" not in text, text
    assert text.count("error: ") == 1, text
    return text[text.index("error: ") :].strip()


@pytest.fixture(scope="module")
def finished(start, tmp_path_factory):
    """A run from start to end; (run directory, command)."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    command = start(run)
    assert command.wait() == 0, command.stderr
    return run, command


# ---- a whole run ----------------------------------------------------------------------------


def test_a_run_leaves_everything_behind(finished):
    run, _ = finished
    config = json.loads((run / "config.json").read_text())
    assert config["rl.learning_rate"] == 1e-3 and config["model.num_layers"] == 1
    (record,) = json.loads((run / "versions.json").read_text())
    assert record["packages"]["jax"] and "--config.rl.steps=4" in record["command"]
    assert (run / "curves.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert list((run / "tensorboard").glob("events*"))
    assert checkpoint_steps(run) == [0, 2, 4]
    assert not [p for p in run.rglob("*") if p.name.endswith((".tmp", "checkpoint-tmp"))]


def test_a_run_logs_each_step_and_its_evaluations(finished):
    run, _ = finished
    records = read_metrics(run)
    kinds = [(r["kind"], r["step"]) for r in records]
    assert kinds == [("base", 0), ("train", 1), ("train", 2), ("eval", 2), ("train", 3),
                     ("train", 4), ("final", 4)]
    train = [r for r in records if r["kind"] == "train"]
    updated = [r for r in train if r["rl/zero_variance_groups"] < 1]
    assert len(updated) >= 2, "too few groups whose episodes differ: the run tests nothing"
    assert all(r.keys() >= KEYS for r in updated)
    assert all(r["rl/log_prob_gap"] < 1e-4 for r in updated)
    assert sum(r["compilations"] for r in train) == 0


def test_every_metric_of_a_run_has_a_row_in_the_docs(finished):
    names = {key for record in read_metrics(finished[0]) for key in record}
    assert len(names) > 60 and not undocumented(names - {"step", "kind"})


def test_a_run_writes_the_episodes_that_it_trained_on(finished):
    run, _ = finished
    assert list(trajectory_files(run)) == [1, 2, 3, 4]
    assert list(trajectory_files(run, "eval")) == [0, 2, 4]
    for step, path in trajectory_files(run).items():
        trajectories = read_trajectories(path)
        assert len(trajectories) == 8  # log.trajectories: those of the first task
        assert len({t.task.task_id for t in trajectories}) == 1
        assert len({t.seed for t in trajectories}) == 8
        for t in trajectories:
            assert t.reward == pytest.approx(sum(t.reward_parts[k] for k in
                                                 ("terminal", "turns", "major")))
            assert len(t.turn_scores) == len(t.turns) and t.num_tokens <= 256, step


def test_a_run_prints_base_and_trained_side_by_side(finished):
    run, command = finished
    for text in ("base", "trained", "pass^1", "clean pass", "turns", str(run)):
        assert text in command.stdout
    assert command.stdout.index("clean pass") < command.stdout.index("go on  ")
    assert "compiling rollouts (" in command.stdout and "compiling the update (" in command.stdout
    summary = json.loads((run / "summary.json").read_text())
    assert summary["base"]["eval/tasks"] == summary["trained"]["eval/tasks"] == 3


def test_a_run_changes_the_parameters(finished):
    first, last = (read_state(finished[0], step) for step in (0, 4))
    names = [n for n in last if ".params" in n or "['params']" in n]
    assert len(names) > 8
    for name in names:
        assert np.isfinite(last[name]).all()
        assert not np.array_equal(first[name], last[name]), name


# ---- accidents ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def interrupted(start, tmp_path_factory):
    """The same run, stopped by Ctrl-C after a step and then killed between two checkpoints."""
    run = tmp_path_factory.mktemp("runs") / "interrupted"
    first = start(run)
    first.wait_for_step(run, 1)
    first.process.send_signal(signal.SIGINT)
    first.wait()
    after_first = train_steps(run), checkpoint_steps(run)
    second = start(run)
    second.wait_for_step(run, 3)
    second.process.send_signal(signal.SIGKILL)
    second.wait()
    after_second = train_steps(run), checkpoint_steps(run)
    third = start(run)
    third.wait()
    return run, (first, second, third), (after_first, after_second)


def test_ctrl_c_ends_the_step_saves_it_and_says_how_to_go_on(interrupted):
    run, (first, _, _), ((steps, checkpoints), _) = interrupted
    assert first.process.returncode == 130
    assert f"tarl_jax.main {run}" in one_message(first)
    assert steps == list(range(1, steps[-1] + 1)) and steps[-1] < STEPS
    assert checkpoints[-1] == steps[-1]


def test_a_killed_run_goes_on_from_its_last_checkpoint(interrupted):
    run, (_, second, third), (_, (steps, checkpoints)) = interrupted
    assert second.process.returncode == -signal.SIGKILL
    assert steps == [1, 2, 3] and checkpoints[-1] < 3  # killed where a step was not saved
    assert third.process.returncode == 0, third.stderr
    assert "resuming" in third.stdout and "after step 2" in third.stdout
    assert len(json.loads((run / "versions.json").read_text())) == 3


def test_accidents_change_nothing(interrupted, finished):
    """Parameters, optimiser, every logged number and every episode are those of a whole run."""
    run, whole = interrupted[0], finished[0]
    expected, found = read_state(whole, STEPS), read_state(run, STEPS)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        assert value.tobytes() == found[name].tobytes(), name

    def numbers(run: Path) -> list[dict]:
        def timed(name: str) -> bool:
            return name.startswith(("seconds/", "compilations")) or name.endswith("_per_second")

        return [{k: v for k, v in r.items() if not timed(k)} for r in read_metrics(run)]

    assert numbers(run) == numbers(whole)
    for kind in ("step", "eval"):
        files, others = trajectory_files(run, kind), trajectory_files(whole, kind)
        assert files.keys() == others.keys()
        for step in files:
            for a, b in zip(*map(read_trajectories, (files[step], others[step])), strict=True):
                a.seconds = b.seconds = {}
                assert a == b


def test_a_damaged_checkpoint_is_one_message(start, finished, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished[0], run)
    for file in [p for p in (run / "checkpoints/4/state").rglob("*") if p.is_file()]:
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    command = start(run)
    assert command.wait() == 1
    message = one_message(command)
    assert str(run / "checkpoints" / "4") in message and "Remove that folder" in message
    assert len(message.splitlines()) == 1


def test_a_policy_that_breaks_ends_the_run_with_the_last_good_checkpoint(start, tmp_path):
    run = tmp_path / "run"
    command = start(run, **{"rl.learning_rate": 1e30, "checkpoint.every": 1, "eval.every": 0})
    assert command.wait() == 1, command.stdout
    message = one_message(command)
    bad = max(train_steps(run), default=0) + 1
    assert f"step {bad}:" in message
    assert f"checkpoint of step {bad - 1}" in message and "rl.learning_rate" in message
    assert checkpoint_steps(run)[-1] == bad - 1
    for name, value in read_state(run, bad - 1).items():
        assert np.isfinite(value).all() and np.abs(value).max() < 1e6, name


# ---- maths in the mix -----------------------------------------------------------------------

MATHS = {
    "maths.ratio": "(0.5,)", "maths.min_pass": 0.0, "maths.max_pass": 0.5, "maths.band_problems": 4,
    "maths.band_trials": 2, "maths.demonstrations": 0.0, "eval.maths_tasks": 2,
    "warm_start.steps": 0,  # what the policy can do does not matter here
    "checkpoint.every": 1, "eval.every": 0, "log.trajectories": 16,
}


@pytest.mark.slow
def test_a_run_with_maths_goes_on_with_the_same_problems(start, tmp_path):
    run = tmp_path / "run"
    first = start(run, config="math_tarl", **MATHS, **{"rl.steps": 1})
    assert first.wait() == 0, first.stderr
    assert "maths: 4 of 2000 problems to train on; 0 were too long" in first.stdout
    rates = (run / "maths_pass_rates.json").read_bytes()
    second = start(run, config="math_tarl", **MATHS, **{"rl.steps": 2})
    assert second.wait() == 0, second.stderr
    assert "resuming" in second.stdout and (run / "maths_pass_rates.json").read_bytes() == rates
    train = [r for r in read_metrics(run) if r["kind"] == "train"]
    assert [r["maths/share"] for r in train] == [0.5, 0.5]
    assert all(r["maths/pass_rate"] <= 1 and r["judge/abstained"] == 0 for r in train)
    summary = json.loads((run / "summary.json").read_text())
    assert "eval/maths_pass@1" in summary["base"] and "maths pass@1" in second.stdout
    for path in trajectory_files(run).values():
        maths = [t for t in read_trajectories(path) if t.task.kind == "maths"]
        assert len(maths) == 8 and len({t.task.task_id for t in maths}) == 1
        assert all(t.turn_scores is None and len(t.turns) == 1 for t in maths)
        assert {t.reward for t in maths} <= {0.0, 10.0}
        assert {t.task.task_id for t in maths} <= set(json.loads(rates))


# ---- bad input ------------------------------------------------------------------------------


def test_another_config_does_not_continue_a_run(start, finished):
    run, _ = finished
    before = (run / "config.json").read_text()
    command = start(run, **{"rl.learning_rate": 0.5, "model.d_ff": 96})
    assert command.wait() == 2
    message = one_message(command)
    assert "rl.learning_rate: 0.001 -> 0.5" in message and "model.d_ff: 64 -> 96" in message
    assert (run / "config.json").read_text() == before


@pytest.mark.parametrize(
    ("flag", "named"),
    [
        ("--config.rl.learning_rte=1", "learning_rte"),
        ("--config.rl.steps=many", "steps"),
        ("--config.reward.placement=somewhere", "reward.placement"),
    ],
)
def test_a_bad_override_is_one_line_that_names_it(start, tmp_path, flag, named):
    command = start(tmp_path / "run", flags=[flag])
    assert command.wait() == 2
    message = one_message(command)
    assert named in message and len(message.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_a_broken_task_file_names_file_and_line(start, tmp_path, tiny_env):
    path = tmp_path / "tasks.jsonl"
    good = json.dumps(tiny_env.train_tasks[0].to_json())
    path.write_text(f'{good}\n{good[:-40]}\n{good}\n')
    command = start(tmp_path / "run", **{"tasks.file": path})
    assert command.wait() == 2
    assert f"{path}:2" in one_message(command)


def test_a_directory_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("…")
    config = RunConfig(workdir=str(tmp_path))
    with pytest.raises(ConfigError, match="holds no run"):
        open_run_dir(config)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_run_may_go_on_on_other_devices_but_not_as_another_run(tmp_path):
    config = RunConfig(workdir=str(tmp_path / "run"))
    (open_run_dir(config) / "checkpoints" / "0").mkdir(parents=True)
    elsewhere = dataclasses.replace(
        config, mesh=MeshConfig(data=1, fsdp=-1),
        model=dataclasses.replace(config.model, remat="full", scan_layers=True),
    )
    open_run_dir(elsewhere)
    wider = dataclasses.replace(config, model=dataclasses.replace(config.model, d_ff=512))
    with pytest.raises(ConfigError, match=r"model\.d_ff: 384 -> 512"):
        open_run_dir(wider)


# ---- the other commands ---------------------------------------------------------------------


def test_evaluating_the_last_checkpoint_gives_the_numbers_of_the_run(start, finished):
    run, _ = finished
    command = start(run, "tarl_jax.evaluate")
    assert command.wait() == 0, command.stderr
    assert "pass^1" in command.stdout and "turns" in command.stdout
    found = json.loads((run / f"evaluation-{STEPS}.json").read_text())
    trained = json.loads((run / "summary.json").read_text())["trained"]
    same = [k for k in found if not k.startswith(("seconds", "eval/tokens_per_second"))]
    assert len(same) > 20
    assert {k: found[k] for k in same} == {k: trained[k] for k in same}


def test_view_prints_a_dialogue_of_the_run(finished, tmp_path):
    run, _ = finished
    for flags, files in (([], trajectory_files(run)), (["--eval"], trajectory_files(run, "eval"))):
        command = Command(tmp_path, "tarl_jax.view", str(run), "--terminal", *flags)
        assert command.wait() == 0, command.stderr
        first = read_trajectories(files[STEPS])[0]
        assert first.task.task_id in command.stdout
        opening = first.segments[1].text
        assert opening.split(".")[0][:30] in command.stdout
        assert first.stop_reason in command.stdout


def test_help_and_import_are_quick(tmp_path):
    times = {}
    for name, arguments in {
        "import tarl_jax": ["-c", "import tarl_jax"],
        "main --help": ["-m", "tarl_jax.main", "--help"],
        "evaluate --help": ["-m", "tarl_jax.evaluate", "--help"],
        "view --help": ["-m", "tarl_jax.view", "--help"],
    }.items():
        begun = time.monotonic()
        command = [sys.executable, *arguments]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        times[name] = time.monotonic() - begun
        if "--help" in arguments:
            assert "tarl_jax" in done.stdout + done.stderr, name
    print({name: f"{seconds:.2f} s" for name, seconds in times.items()})
    assert max(times.values()) < 20, times  # a hang, not a slow machine


# ---- stopping -------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_second_signal_does_not_wait(number):
    before = signal.getsignal(number)
    with StopRequest() as stop:
        assert not stop.received
        os.kill(os.getpid(), number)
        assert stop.received == number
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
            time.sleep(1)
    assert signal.getsignal(number) is before


@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_run_ends_with_the_signals_status(capsys, number, status):
    def job():
        with StopRequest() as stop:
            os.kill(os.getpid(), number)
            raise Interrupted("go on: python -m tarl_jax.main here", stop.received)

    assert exit_status(job) == status
    assert capsys.readouterr().err == "error: go on: python -m tarl_jax.main here\n"


# ---- errors that nobody foresaw ------------------------------------------------------------


def test_only_errors_raised_on_purpose_are_one_line(capsys, monkeypatch):
    def asked_for():
        raise ConfigError("config.rl.steps = -1: must be at least 0")

    def unforeseen():
        raise ValueError("operands could not be broadcast")

    monkeypatch.delenv("TARL_DEBUG", raising=False)
    assert exit_status(asked_for) == 2
    assert capsys.readouterr().err == "error: config.rl.steps = -1: must be at least 0\n"
    with pytest.raises(ValueError, match="broadcast"):
        exit_status(unforeseen)
    for debug, variable in ((True, ""), (False, "1")):
        monkeypatch.setenv("TARL_DEBUG", variable)
        assert exit_status(asked_for, debug) == 2
        assert "Traceback" in capsys.readouterr().err


def test_a_fault_in_ones_own_config_file_keeps_its_traceback(tmp_path):
    """A wrong key is one line; an error of the file's own code shows where it is."""
    head = "from tarl_jax.config.presets import sized\n\n\ndef get_config(size=''):\n"
    for body, said, traced in (
        ("    c = sized(size)\n    c.rl.learning_rte = 1\n    return c\n", "learning_rte", False),
        ("    return sized('huge')\n", "size 'huge'", False),
        ("    return int('x')\n", "invalid literal", True),
        ("    import os\n    return os.nothing\n", "no attribute 'nothing'", True),
    ):
        path = tmp_path / "mine.py"
        path.write_text(head + body)
        done = subprocess.run(
            [sys.executable, "-m", "tarl_jax.main", f"--config={path}"], cwd=ROOT,
            capture_output=True, text=True,
        )
        assert done.returncode and said in done.stderr, done.stderr
        assert ("Traceback" in done.stderr and str(path) in done.stderr) == traced, done.stderr
