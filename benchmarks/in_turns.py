"""Versions of one thing, each in a process of its own, measured in turns."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence


def medians(
    commands: Mapping[str, tuple[Sequence[str], Mapping[str, str]]], rounds: int
) -> dict[str, float]:
    """Median seconds of each version.

    Args:
      commands: by the version's name its command line, which ends in `serve`, and its environment.
      rounds: how often each is measured; while one is, the others wait.
    """
    processes = {}
    for name, (command, env) in commands.items():
        processes[name] = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=dict(env)
        )
        _ask(processes[name])  # compiled
    seconds: dict[str, list[float]] = {name: [] for name in processes}
    for _ in range(rounds):
        for name, process in processes.items():
            process.stdin.write("go\n")
            process.stdin.flush()
            seconds[name].append(_ask(process)["seconds"])
    for process in processes.values():
        process.stdin.close()
        process.wait()
    return {name: statistics.median(values) for name, values in seconds.items()}


def serve(once: Callable[[], None], warm_up: int = 1) -> None:
    """Calls `once` a few times, to compile, then timed for each line on standard input."""
    for _ in range(warm_up):
        once()
    print(json.dumps({"ready": 1}), flush=True)
    for _ in sys.stdin:
        begun = time.perf_counter()
        once()
        print(json.dumps({"seconds": time.perf_counter() - begun}), flush=True)


def _ask(process: subprocess.Popen) -> dict[str, float]:
    for line in process.stdout:
        if line.startswith("{"):
            return json.loads(line)
    raise SystemExit(f"{process.args}: ended with code {process.wait()}")
