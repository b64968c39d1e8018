"""Starts Python processes that work together, on fake CPU devices."""

import os
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parents[1]


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def start(command, devices, **env):
    flags = " ".join(f for f in os.environ["XLA_FLAGS"].split() if "device_count" not in f)
    env = os.environ | env | {
        "XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count={devices}",
        "PYTHONPATH": str(ROOT),
    }
    # A cache of programs that two processes write at once may lose entries, nothing else.
    return subprocess.Popen(
        [sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=env, cwd=ROOT,
    )


def outputs(running):
    """What each prints, but for one line of the library that joins them. None outlives the call."""
    with ThreadPoolExecutor(len(running)) as pool:  # all pipes are read at a time
        try:
            said = list(pool.map(lambda process: process.communicate(timeout=300), running))
        finally:
            for process in running:
                process.kill()
    for process, (_, err) in zip(running, said, strict=True):
        assert process.returncode == 0, err[-3000:]
    return [
        "".join(x for x in out.splitlines(keepends=True) if not x.startswith("[Gloo]"))
        for out, _ in said
    ]
