"""Two processes of four devices say what one process of eight says."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent


def start(port, processes, rank, devices):
    flags = " ".join(f for f in os.environ["XLA_FLAGS"].split() if "device_count" not in f)
    env = os.environ | {
        "XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count={devices}",
        "PYTHONPATH": str(HERE.parent),
    }
    # A cache of programs that two processes write at once may lose entries, nothing else.
    return subprocess.Popen(
        [sys.executable, HERE / "two_processes.py", str(port), str(processes), str(rank)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env,
    )


def results(running):
    found = []
    for process in running:
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err[-3000:]
        found.append(json.loads(out.splitlines()[-1]))
    return found


def test_two_processes_say_what_one_says():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pair = results([start(port, 2, rank, devices=4) for rank in range(2)])
    (alone,) = results([start(port, 1, 0, devices=8)])
    together = pair[0]["said"] | pair[1]["said"]
    assert len(pair[0]["said"]) == len(pair[1]["said"]) == 12
    assert together.keys() == alone["said"].keys()
    for seed, (ids, log_probs) in alone["said"].items():
        assert together[seed][0] == ids, seed
        np.testing.assert_allclose(together[seed][1], log_probs, atol=1e-5)
    assert pair[0]["sampled"] == pair[1]["sampled"] == alone["sampled"] > 500
