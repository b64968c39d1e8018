"""A storm over small runs that learn: kills, faults of endpoints, full disks, starts at once.

    python benchmarks/storm.py --kills 100 --faults 0.3 --hours 8

First one run without any of it. Then, as often as asked for:

    kills     SIGKILL at a moment drawn at random, after a line that the run prints (a phase), or
              while a file is being written; then the run is started again, and killed again
    stops     SIGTERM instead
    disks     the run directory on a file system in memory that fills up (needs the right to mount)
    pairs     two starts on one directory at once
    crowds    eight runs at once that begin with an empty cache
    faults    users that are language models, on a server of which that share of requests fails

A run has survived if it ends with every parameter, number and episode of the one without a storm,
to the bit; if each end before that was a kill, or one message and no traceback; with faults, if no
episode is lost and the run's counts are the server's. Prints tried and survived by kind, and exits
with 1 where they differ; what did not survive stays in --out.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[1]
STEPS = 3
SMALL = {
    "model.num_layers": 1, "warm_start.steps": 200, "warm_start.episodes": 200, "rollout.slots": 2,
    "rollout.max_episode_tokens": 256, "rollout.tasks_per_step": 2, "rollout.group_size": 8,
    "reward.placement": "trajectory", "reward.max_majors": 8, "rl.steps": STEPS,
    "rl.learning_rate": 1e-3, "rl.micro_batch_tokens": 256, "eval.every": 2, "eval.tasks": 2,
    "eval.final_tasks": 2, "eval.trials": 2, "checkpoint.every": 1, "checkpoint.keep": 5,
}  # fmt: skip
WITH_USERS = {
    "user.kind": "llm", "user.llm.api_key_env": "", "user.llm.max_attempts": 12,
    "user.llm.backoff_seconds": 0.01, "user.llm.timeout_seconds": 2.0, "user.llm.model": "user",
}
FAULTS = ("500", "503", "429", "drop", "truncated", "malformed", "html", "empty", "hang")
PHASES = ("building", "compiling", "evaluating the base", "step 1/", "step 2/", "evaluating (",
          "evaluating the trained")
TIMED = ("seconds/", "compilations")


class Start:
    """A start of a run in a process of its own; its output in files beside the run directory."""

    def __init__(self, run: Path, cache: Path, beside: Path | None = None, **changes: object):
        """beside: what the log lies beside, in place of the run directory."""
        values = {**SMALL, "warm_start.cache_dir": cache, **changes}
        beside = beside or run
        self.log = beside.with_name(f"{beside.name}.{time.time_ns()}.log")
        self.run = run
        with self.log.open("w") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tarl_jax.main",
                 f"--config={ROOT / 'configs/grpo_tarl.py'}:tiny", f"--workdir={run}",
                 *(f"--config.{key}={value}" for key, value in values.items())],
                cwd=ROOT, stdout=out, stderr=out,
                env=os.environ | {"TARL_KEEP_MALLOC": "1", "JAX_PLATFORMS": "cpu"},
            )

    @property
    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def ended(self, seconds: float = 1200.0) -> int:
        """Its status. One that hangs is killed, and has not survived."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise Broken(f"{self.log}: still running after {seconds:g} s") from None

    def one_message(self) -> None:
        """Raises Broken unless it ended with one message."""
        if "Traceback" in self.said or self.said.count("error: ") != 1:
            raise Broken(f"{self.log}: did not end with one message")


class Broken(Exception):
    """Something did not survive."""


def content(run: Path) -> dict[str, object]:
    """What a finished run has come to, without the clocks."""
    from tarl_jax.runs.metrics import read_metrics, read_trajectories, trajectory_files

    found: dict[str, object] = {}
    step = max(int(p.name) for p in (run / "checkpoints").iterdir() if p.name.isdigit())
    for name, value in parameters(run, step).items():
        found[f"{step} {name}"] = value
    for record in read_metrics(run):
        found[f"row {record['step']} {record['kind']}"] = {
            k: v for k, v in record.items()
            if not k.startswith(TIMED) and not k.endswith("_per_second")
            and not k.startswith(("user/", "eval/user/"))
        }
    for kind in ("step", "eval"):
        for number, path in trajectory_files(run, kind).items():
            found[f"episodes {kind} {number}"] = [
                dataclasses.replace(t, seconds={}).to_json_line() for t in read_trajectories(path)
            ]
    return found


def parameters(run: Path, step: int) -> dict[str, bytes]:
    import jax
    import numpy as np
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as checkpointer:
        tree = checkpointer.restore((run / "checkpoints" / str(step) / "state").absolute())
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): np.asarray(x).tobytes() for path, x in leaves}


def require_same(run: Path, whole: dict[str, object]) -> None:
    found = content(run)
    other = [name for name in found.keys() | whole.keys() if found.get(name) != whole.get(name)]
    if other:
        raise Broken(f"{run}: another {', '.join(sorted(other)[:5])}")


# ---- what the storm does ------------------------------------------------------------------------


class Storm:
    """Counts what was tried and what survived; `whole` is a run without it."""

    def __init__(self, out: Path, seed: int, end: float):
        self.out, self.end = out, end
        self.random = random.Random(seed)
        self.cache = out / "cache"
        self.tried: Counter[str] = Counter()
        self.survived: Counter[str] = Counter()
        self.numbers = iter(range(10**6))
        begun = time.monotonic()
        first = Start(out / "whole", self.cache)
        if first.ended():
            raise SystemExit(f"the run without a storm failed:\n{first.said[-2000:]}")
        self.seconds = time.monotonic() - begun
        self.whole = content(out / "whole")
        self.bytes = sum(p.stat().st_size for p in (out / "whole").rglob("*") if p.is_file())
        states = [parameters(out / "whole", s) for s in (0, STEPS)]
        if states[0] == states[1]:
            raise SystemExit("the run without a storm learns nothing: it would show nothing")

    def trial(self, kind: str, count: int, job: Callable[[Path], None]) -> None:
        """Runs a job in a directory of its own; one that survives is deleted."""
        run = self.out / f"{kind.replace(' ', '-')}-{next(self.numbers)}"
        self.tried[kind] += count
        try:
            job(run)
        except Broken as error:
            print(f"NOT SURVIVED ({kind}): {error}", flush=True)
            return
        self.survived[kind] += count
        for path in self.out.glob(f"{run.name}*"):
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink()

    def late(self) -> bool:
        return time.monotonic() > self.end

    def strike(self, kind: str, number: int, run: Path) -> bool:
        """A start that is struck once; whether it was, before its end."""
        start = Start(run, self.cache)
        when = time.monotonic() + self.random.uniform(0, 0.8 * self.seconds)
        phase, writes = self.random.choice(PHASES), self.random.randint(1, 30)
        delay, seen = self.random.expovariate(3.0), set()
        while start.process.poll() is None:
            if kind == "uniform" and time.monotonic() > when:
                break
            if kind == "phase" and phase in start.said:
                time.sleep(delay)
                break
            if kind == "write":
                with contextlib.suppress(OSError):
                    seen |= {str(p) for p in run.rglob("*") if "tmp" in p.name}
                if len(seen) >= writes:
                    break
            time.sleep(0.001 if kind == "write" else 0.02)
        if start.process.poll() is not None:
            if start.process.returncode:
                raise Broken(f"{start.log}: ended by itself with {start.process.returncode}")
            return False
        start.process.send_signal(number)
        if number == signal.SIGKILL:
            start.process.wait()
            return True
        status = start.ended(600)
        if status == -number and "building" not in start.said:
            return True  # before it listened to signals, and had anything to lose
        if status == -number and "  export it  " in start.said:
            return False  # it had ended, and Python was on its way out
        if status:
            if status != 128 + number:
                raise Broken(f"{start.log}: status {status} after signal {number}")
            start.one_message()
        return bool(status)

    def strikes(self, kind: str, number: int, count: int, run: Path) -> None:
        done = 0
        while done < count:
            if not self.strike(kind, number, run):
                shutil.rmtree(run)  # it has ended before it was struck: another one
                continue
            done += 1
        last = Start(run, self.cache)
        if last.ended():
            raise Broken(f"{last.log}: did not go on")
        require_same(run, self.whole)

    def disk(self, run: Path) -> None:
        run.mkdir()
        size = int(self.bytes * self.random.uniform(0.15, 0.95)) >> 10
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", run], check=True)
        try:
            first = Start(run / "run", self.cache, run)
            if first.ended() == 0:
                raise Broken(f"{run}: did not notice a disk of {size} KiB")
            first.one_message()
            subprocess.run(["mount", "-o", "remount,size=1g", run], check=True)
            second = Start(run / "run", self.cache, run)
            if second.ended():
                raise Broken(f"{run}: did not go on: {second.said[-500:]}")
            require_same(run / "run", self.whole)
        finally:
            subprocess.run(["umount", "-l", run], check=True)

    def pair(self, run: Path) -> None:
        both = [Start(run, self.cache) for _ in range(2)]
        statuses = sorted(start.ended() for start in both)
        if statuses != [0, 1]:
            raise Broken(f"{run}: two starts ended with {statuses}")
        for start in both:
            if start.process.returncode:
                start.one_message()
                if "is in use by process" not in start.said:
                    raise Broken(f"{start.log}: does not say who has the directory")
        require_same(run, self.whole)

    def crowd(self, run: Path) -> None:
        run.mkdir()
        all_ = [Start(run / str(n), run / "cache") for n in range(8)]
        for start in all_:
            if start.ended(3600):
                raise Broken(f"{start.log}: failed among others")
            require_same(start.run, self.whole)

    def faults(self, share: float, run: Path) -> None:
        from openai_server import LocalServer  # of tests/

        from tarl_jax.runs.metrics import read_metrics

        server = LocalServer()
        try:
            server.plan(fractions=dict.fromkeys(FAULTS, share / len(FAULTS)),
                        seed=self.random.randrange(10**6), retry_after="0.02")
            start = Start(run, self.cache, **WITH_USERS, **{"user.llm.base_url": server.url})
            if start.ended():
                raise Broken(f"{start.log}: ended with {start.process.returncode}")
            report, rows = server.report(), read_metrics(run)
        finally:
            server.close()
        counts: Counter[str] = Counter()
        for row in rows:
            counts.update({k.removeprefix("eval/"): v for k, v in row.items() if "user/" in k})
        broken = sum(row.get("rollout/broken", row.get("eval/broken", 0.0)) for row in rows)
        failed = sum(n for name, n in counts.items() if name.startswith("user/faults_"))
        if broken or counts["user/requests"] != report["requests"]:
            raise Broken(f"{run}: {broken:g} broken; {counts['user/requests']:g} requests counted,"
                         f" {report['requests']} served")
        if failed != sum(report["injected"].values()):
            raise Broken(f"{run}: {failed:g} faults counted, {report['injected']} injected")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20, help="in all, on all moments")
    parser.add_argument("--stops", type=int, default=3)
    parser.add_argument("--disks", type=int, default=3)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--crowds", type=int, default=1)
    parser.add_argument("--faults", type=float, default=0.0, help="share of requests; 0: none")
    parser.add_argument("--hours", type=float, default=1.0, help="after which nothing is begun")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="a folder for the runs; a new one by default")
    args = parser.parse_args()
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    out = args.out or Path(tempfile.mkdtemp(prefix="storm-"))
    out.mkdir(parents=True, exist_ok=True)
    storm = Storm(out, args.seed, time.monotonic() + 3600 * args.hours)
    print(f"{out}: a run takes {storm.seconds:.0f} s and {storm.bytes / 1e6:.1f} MB", flush=True)

    left = args.kills
    while left and not storm.late():
        kind = ("uniform", "phase", "write")[left % 3]
        count = min(left, storm.random.randint(1, 3))
        storm.trial(f"kill, {kind}", count,
                    lambda run, k=kind, n=count: storm.strikes(k, signal.SIGKILL, n, run))
        left -= count
    for _ in range(args.stops):
        if not storm.late():
            kind = storm.random.choice(("uniform", "phase"))
            storm.trial("stop", 1, lambda run, k=kind: storm.strikes(k, signal.SIGTERM, 1, run))
    for _ in range(args.disks):
        if not storm.late():
            storm.trial("full disk", 1, storm.disk)
    for _ in range(args.pairs):
        if not storm.late():
            storm.trial("two starts", 1, storm.pair)
    for _ in range(args.crowds):
        if not storm.late():
            storm.trial("crowd, empty cache", 1, storm.crowd)
    if args.faults and not storm.late():
        storm.trial("faults", 1, lambda run: storm.faults(args.faults, run))

    print(json.dumps({kind: {"tried": storm.tried[kind], "survived": storm.survived[kind]}
                      for kind in storm.tried}, indent=1))
    if storm.tried == storm.survived:
        shutil.rmtree(out)
        return 0
    print(f"what did not survive is in {out}")
    return 1


if __name__ == "__main__":
    sys.exit(main())
