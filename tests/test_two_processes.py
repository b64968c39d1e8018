"""Two processes do what one with as many devices does: rollouts, and whole runs."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tarl_jax import hosts
from tarl_jax.config import ConfigError, MeshConfig
from tarl_jax.metrics import read_metrics

HERE = Path(__file__).parent


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def start(command, devices, **env):
    flags = " ".join(f for f in os.environ["XLA_FLAGS"].split() if "device_count" not in f)
    env = os.environ | env | {
        "XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count={devices}",
        "PYTHONPATH": str(HERE.parent),
    }
    # A cache of programs that two processes write at once may lose entries, nothing else.
    return subprocess.Popen(
        [sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=env, cwd=HERE.parent,
    )


def outputs(running):
    found = []
    for process in running:
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err[-3000:]
        lines = out.splitlines(keepends=True)
        found.append("".join(line for line in lines if not line.startswith("[Gloo]")))
    return found


def test_two_processes_say_what_one_says():
    port, script = free_port(), HERE / "two_processes.py"

    def results(processes, devices):
        running = [start([script, *map(str, (port, processes, rank))], devices)
                   for rank in range(processes)]
        return [json.loads(out.splitlines()[-1]) for out in outputs(running)]

    pair = results(2, devices=4)
    (alone,) = results(1, devices=8)
    together = pair[0]["said"] | pair[1]["said"]
    assert len(pair[0]["said"]) == len(pair[1]["said"]) == 12
    assert together.keys() == alone["said"].keys()
    for seed, (ids, log_probs) in alone["said"].items():
        assert together[seed][0] == ids, seed
        np.testing.assert_allclose(together[seed][1], log_probs, atol=1e-5)
    assert pair[0]["sampled"] == pair[1]["sampled"] == alone["sampled"] > 500


SMALL = {
    "model.num_layers": 1, "rollout.max_episode_tokens": 192, "rollout.max_turns": 4,
    "rollout.slots": 4, "reward.max_majors": 8, "warm_start.steps": 60, "rl.learning_rate": 1e-3,
    "rl.micro_batch_tokens": 512, "eval.every": 0, "eval.final_tasks": 3, "eval.trials": 2,
    "log.trajectories": 16,
}


def run(workdir, cache_dir, processes, **fields):
    """What each process prints of a small run with a value model, on two devices in all."""
    fields = SMALL | fields | {"warm_start.cache_dir": cache_dir, "mesh.processes": processes,
                               "mesh.data": 1, "mesh.fsdp": 2}
    command = ["-m", "tarl_jax.main", "--config=configs/ppo_turn_end.py:tiny",
               f"--workdir={workdir}", *(f"--config.{k}={v}" for k, v in fields.items())]
    where = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}"}
    return outputs([
        start(command, 2 // processes, JAX_PROCESS_ID=str(rank), **where)
        for rank in range(processes)
    ])


def test_two_processes_train_as_one_does(cache_dir, tmp_path):
    """The second of them writes nothing, and the pair goes on from its own checkpoint."""
    run(tmp_path / "one", cache_dir, 1, **{"rl.steps": 2})
    for steps in (1, 2):
        said = run(tmp_path / "two", cache_dir, 2, **{"rl.steps": steps})
        assert "step 1/" in said[0] or steps == 2
        assert "pass^1" in said[0] and not said[1].strip()
    assert "resuming" in said[0]
    one, two = (
        [r for r in read_metrics(tmp_path / name) if r["kind"] in ("base", "train")]
        for name in ("one", "two")
    )
    assert [r["kind"] for r in one] == [r["kind"] for r in two] == ["base", "train", "train"]
    same = [k for k in one[-1] if k.startswith(("train/", "reward/", "judge/", "rl/"))]
    assert len(same) > 20
    for a, b in zip(one[1:], two[1:], strict=True):
        for key in same:
            assert b[key] == pytest.approx(a[key], rel=2e-3, abs=2e-4), key
        assert b["compilations"] == 0
    assert one[0]["eval/pass^1"] == two[0]["eval/pass^1"]
    assert one[0]["eval/episode_tokens"] == two[0]["eval/episode_tokens"]


def test_processes_that_cannot_meet_are_an_error(monkeypatch):
    monkeypatch.delenv("JAX_COORDINATOR_ADDRESS", raising=False)
    with pytest.raises(ConfigError, match=r"mesh.processes = 2: set JAX_COORDINATOR_ADDRESS"):
        hosts.join(MeshConfig(processes=2))


@pytest.mark.parametrize("count", [1, 2, 3])
def test_shares_are_neighbours_and_lose_nothing(monkeypatch, count):
    monkeypatch.setattr(hosts.jax, "process_count", lambda: count)
    parts = []
    for rank in range(count):
        monkeypatch.setattr(hosts.jax, "process_index", lambda rank=rank: rank)
        parts.append(hosts.share(list(range(7))))
    assert [x for part in parts for x in part] == list(range(7))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
