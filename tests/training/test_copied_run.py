"""A run in a bucket: it starts, is killed, goes on elsewhere and is evaluated there."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from buckets import KINDS, bucket

from tarl_jax.runs.metrics import read_metrics

ROOT = Path(__file__).parents[2]
SMALL = {
    "model.num_layers": 1, "warm_start.steps": 0, "rollout.slots": 4, "rollout.group_size": 2,
    "rollout.tasks_per_step": 2, "rollout.max_episode_tokens": 256, "rl.micro_batch_tokens": 256,
    "rl.measure_after": False, "eval.before": False, "eval.every": 0, "eval.final_tasks": 2,
    "eval.trials": 1, "checkpoint.every": 1, "checkpoint.keep": 2,
}


@pytest.mark.filterwarnings("ignore::ResourceWarning",
                            "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_lives_in_a_bucket(kind, tmp_path):
    with bucket(kind) as (where, env):
        address = f"{where}/first"

        def begin(module, *arguments):
            out = (tmp_path / "out.txt").open("w")
            return subprocess.Popen(
                [sys.executable, "-m", f"tarl_jax.{module}", *arguments,
                 f"--config.warm_start.cache_dir={tmp_path / 'cache'}"],
                cwd=ROOT, env={**os.environ, **env}, stdout=out, stderr=subprocess.STDOUT,
            )

        def ended(module, *arguments):
            process = begin(module, *arguments)
            assert process.wait(300) == 0, (tmp_path / "out.txt").read_text()
            return (tmp_path / "out.txt").read_text()

        def copied():
            script = ("import sys; from tarl_jax.parallel.store import Store\n"
                      "print((Store(sys.argv[1]).read('copy.json') or b'{}').decode())")
            return json.loads(subprocess.run(
                [sys.executable, "-c", script, address], cwd=ROOT, env={**os.environ, **env},
                capture_output=True, text=True, check=True).stdout).get("files", {})

        run = begin("main", f"--config={ROOT / 'configs' / 'grpo.py'}:tiny",
                    f"--workdir={address}", "--config.rl.steps=500",
                    *(f"--config.{key}={value}" for key, value in SMALL.items()))
        deadline = time.monotonic() + 300
        while not any(name.startswith("checkpoints/1") for name in copied()):
            assert run.poll() is None, (tmp_path / "out.txt").read_text()
            assert time.monotonic() < deadline
            time.sleep(3.0)
        run.kill()
        run.wait()
        shutil.rmtree(tmp_path / "cache" / "buckets")  # as on another machine
        there = {int(name.split("/")[1]) for name in copied() if name.startswith("checkpoints/")}

        said = ended("main", address, f"--config.rl.steps={max(there) + 1}")
        assert f"after step {max(there)}" in said and f"copied to {address}" in said
        shutil.rmtree(tmp_path / "cache" / "buckets")
        said = ended("evaluate", address)
        assert "pass^1" in said
        folder = tmp_path / "cache" / "buckets" / kind / "runs" / "first"
        steps = [r["step"] for r in read_metrics(folder) if r["kind"] == "train"]
        assert steps == list(range(1, max(there) + 2))
        assert "summary.json" in copied()
