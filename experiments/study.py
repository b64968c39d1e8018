"""What the experiments share: runs of the main job, one per arm and seed, and their results.

A result is one JSON line, added when its run has ended; a run whose line is there is not made
again, and one that was stopped goes on. So a study of many hours can be made in pieces.
"""

from __future__ import annotations

import dataclasses
import json
import os
import queue
import statistics
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
VERSIONS = ("time", "commit", "uncommitted_changes", "python", "packages", "devices")  # no folders
CURVES = ("train/pass_rate", "train/clean_pass", "judge/major_share")  # kept for every step


@dataclasses.dataclass(frozen=True)
class Arm:
    """A config, and fields of it as `config.group.field=value`."""

    config: str
    fields: tuple[str, ...] = ()


def make(
    arms: Mapping[str, Arm], seeds: Sequence[int], out: Path, results: Path, fields: Sequence[str],
    jobs: int = 1, seeded: Sequence[str] = (), evaluation: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """Runs what has no result yet, seed after seed; returns the results of these arms.

    Args:
      out: folder of the runs.
      results: JSON lines; each is made of what `summary` says.
      fields: of every arm, where it has none of its own.
      seeded: fields that get the run's seed as their value, beside config.seed.
      evaluation: fields of one more evaluation of each run's last checkpoint, whose figures become
        its "trained"; empty: those of the run itself.
      jobs: runs at a time. More than one share the CPU's cores among them, which together is
        faster than one after the other, and write to OUT/ARM-SEED.log.
    """
    made = {(r["arm"], r["seed"]) for r in read(results)}
    wanted = [
        (name, seed) for seed in dict.fromkeys(seeds) for name in arms if (name, seed) not in made
    ]
    free: queue.SimpleQueue[int] = queue.SimpleQueue()
    for place in range(jobs):
        free.put(place)
    writing, failed, first_ended = threading.Lock(), threading.Event(), threading.Event()

    def run(name: str, seed: int) -> None:
        if failed.is_set():
            return
        workdir = out / f"{name}-{seed}"
        command = [
            sys.executable, "-m", "tarl_jax.main", f"--config={ROOT / arms[name].config}",
            f"--workdir={workdir}", f"--config.seed={seed}",
            *(f"--{field}={seed}" for field in seeded),
            *(f"--{field}" for field in (*fields, *arms[name].fields)),  # the arm's go last
        ]
        commands = [command]
        if evaluation:
            again = [*command, *(f"--{field}" for field in evaluation)]
            again[again.index("tarl_jax.main")] = "tarl_jax.evaluate"
            commands.append(again)
        place = free.get()
        try:
            if jobs == 1:
                for one in commands:
                    subprocess.run(one, check=True, cwd=ROOT)
            else:
                if (name, seed) != wanted[0] and not seeded:
                    _await_warm_start(out / "{}-{}".format(*wanted[0]), first_ended)
                log = workdir.with_name(f"{workdir.name}.log")
                for one in commands:
                    _run_on(place, jobs, one, log)
            line = json.dumps({"arm": name, "seed": seed, **summary(workdir)})
            with writing, results.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        except BaseException:
            failed.set()  # no other is begun
            raise
        finally:
            if (name, seed) == wanted[0]:
                first_ended.set()
            free.put(place)

    out.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(jobs) as pool:
        try:
            for one in [pool.submit(run, *one) for one in wanted]:
                one.result()
        except BaseException:
            failed.set()
            raise
    return [r for r in read(results) if r["arm"] in arms]


def _await_warm_start(workdir: Path, ended: threading.Event) -> None:
    """Until the run has its warm start, which the others then find in the cache."""
    while not ended.is_set() and not (workdir / "checkpoints" / "0").is_dir():
        ended.wait(0.2)


def _run_on(place: int, places: int, command: Sequence[str], log: Path) -> None:
    """Runs it on one of so many equal shares of the cores; what it prints goes to the log."""
    print(f"{log.stem}: begun, {log}", flush=True)
    if hasattr(os, "sched_setaffinity"):  # Linux; of this thread and what it starts
        cores = sorted(os.sched_getaffinity(threading.main_thread().native_id or 0))
        os.sched_setaffinity(0, cores[place::places] or cores)
    with log.open("a", encoding="utf-8") as file:
        subprocess.run(command, check=True, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT)
    print(f"{log.stem}: done", flush=True)


def read(results: Path) -> list[dict[str, Any]]:
    """The results so far."""
    if not results.exists():
        return []
    # Results of commits up to 9344140 have an older name for spoken evaluations.
    text = results.read_text("utf-8").replace('"eval/heard/', '"eval/spoken/')
    return [json.loads(line) for line in text.splitlines()]


def summary(workdir: Path) -> dict[str, Any]:
    """What a finished run came to: both evaluations, curves, times, versions."""
    versions = json.loads((workdir / "versions.json").read_text("utf-8"))[-1]
    lines = (workdir / "metrics.jsonl").read_text("utf-8").splitlines()
    steps = [r for r in map(json.loads, lines) if r["kind"] == "train"]
    figures = json.loads((workdir / "summary.json").read_text("utf-8"))
    apart = workdir / f"evaluation-{len(steps)}.json"
    if apart.is_file():
        figures["trained"] = json.loads(apart.read_text("utf-8"))
    return {
        "steps": len(steps),
        "median_seconds": {
            phase: statistics.median(r[f"seconds/{phase}"] for r in steps)
            for phase in ("rollout", "update", "step")
        } if steps else {},
        "compilations_while_training": sum(r["compilations"] for r in steps),
        "curves": {key: [round(r[key], 4) for r in steps if key in r] for key in CURVES},
        "versions": {key: versions[key] for key in VERSIONS if key in versions},
        **figures,
    }


def table(results: Sequence[Mapping[str, Any]], shown: Sequence[str]) -> str:
    """Markdown: a row per run, base → trained."""
    lines = ["| arm | seed | " + " | ".join(shown) + " |", "|---" * (len(shown) + 2) + "|"]
    for r in results:
        cells = [f"{r['base'][f'eval/{k}']:.3g} → {r['trained'][f'eval/{k}']:.3g}" for k in shown]
        lines.append(f"| {r['arm']} | {r['seed']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def means(results: Sequence[Mapping[str, Any]], shown: Sequence[str]) -> str:
    """Markdown: a row per arm, mean over its seeds after training, lowest to highest if several."""
    arms = list(dict.fromkeys(r["arm"] for r in results))
    lines = [f"| arm | seeds | {' | '.join(shown)} |", "|---" * (len(shown) + 2) + "|"]
    for arm in arms:
        own = [r["trained"] for r in results if r["arm"] == arm]
        cells = []
        for k in shown:
            found = [r[f"eval/{k}"] for r in own]
            spread = f" ({min(found):.3g} to {max(found):.3g})" if len(found) > 1 else ""
            cells.append(f"{statistics.mean(found):.3g}{spread}")
        lines.append(f"| {arm} | {len(own)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


@dataclasses.dataclass(frozen=True)
class Paired:
    """What one arm has more than another, on the runs that both have.

    n: pairs. mean: of their differences; low, high: its t-interval at the level that was asked for.
    p: of no difference, two-sided. detectable: the difference that so many pairs with this spread
    would find in 80 of 100 studies at 5%.
    """

    n: int
    mean: float
    low: float
    high: float
    p: float
    detectable: float

    def __str__(self) -> str:
        return f"{self.mean:+.3f} ({self.low:+.3f} to {self.high:+.3f})"


def paired(
    results: Sequence[Mapping[str, Any]], key: str, arm: str, other: str, level: float = 0.95
) -> Paired | None:
    """By Student's t over runs from different warm starts; None for fewer than two pairs.

    key: of "trained", or "area": the mean pass rate over the steps of training.
    """
    from scipy import stats

    def value(r: Mapping[str, Any]) -> float:
        if key == "area":
            return statistics.mean(r["curves"]["train/pass_rate"])
        return float(r["trained"][f"eval/{key}"])

    found = {(r["arm"], r["seed"]): value(r) for r in results if r["arm"] in (arm, other)}
    gaps = [found[arm, s] - found[other, s] for a, s in found if a == arm and (other, s) in found]
    n = len(gaps)
    if n < 2:
        return None
    mean, error = statistics.mean(gaps), statistics.stdev(gaps) / n**0.5
    half = float(stats.t.ppf((1 + level) / 2, n - 1)) * error
    p = float(2 * stats.t.sf(abs(mean) / error, n - 1)) if error else float(mean == 0)
    detectable = float(stats.t.ppf(0.975, n - 1) + stats.t.ppf(0.8, n - 1)) * error
    return Paired(n, mean, mean - half, mean + half, p, detectable)


def comparisons(
    results: Sequence[Mapping[str, Any]], keys: Sequence[str], pairs: Sequence[tuple[str, str]]
) -> str:
    """Markdown: paired differences with 95% t-intervals; "*": beyond chance after Holm's correction
    for the number of comparisons of a column (S. Holm, 1979). Last, what could have been found.
    """
    table = {(pair, key): paired(results, key, *pair) for pair in pairs for key in keys}
    starred = set()
    for key in keys:
        tried = sorted((t.p, pair) for pair in pairs if (t := table[pair, key]))
        for place, (p, pair) in enumerate(tried):
            if p * (len(tried) - place) > 0.05:
                break
            starred.add((pair, key))
    lines = [f"| arm | against | warm starts | {' | '.join(keys)} | detectable |",
             "|---" * (len(keys) + 4) + "|"]
    for pair in pairs:
        cells = [
            f"{t}{' *' if (pair, key) in starred else ''}"
            for key in keys if (t := table[pair, key])
        ]
        first = table[pair, keys[0]]
        if first is not None and len(cells) == len(keys):
            lines.append(f"| {pair[0]} | {pair[1]} | {first.n} | {' | '.join(cells)} |"
                         f" {first.detectable:.3f} |")
    return "\n".join(lines)


def differences(
    results: Sequence[Mapping[str, Any]], shown: Sequence[str], pairs: Sequence[tuple[str, str]]
) -> str:
    """Markdown: what one arm has more than another after training, on the seeds that both have.

    Mean and standard error over seeds. pairs: (arm, the one that it is held against).
    """
    trained = {(r["arm"], r["seed"]): r["trained"] for r in results}
    lines = [f"| arm | against | seeds | {' | '.join(shown)} |", "|---" * (len(shown) + 3) + "|"]
    for arm, other in pairs:
        seeds = sorted(s for name, s in trained if name == arm and (other, s) in trained)
        if not seeds:
            continue
        cells = []
        for k in shown:
            key = f"eval/{k}"
            gaps = [trained[arm, seed][key] - trained[other, seed][key] for seed in seeds]
            error = f" ± {statistics.stdev(gaps) / len(gaps) ** 0.5:.3f}" if len(gaps) > 1 else ""
            cells.append(f"{statistics.mean(gaps):+.3f}{error}")
        lines.append(f"| {arm} | {other} | {len(seeds)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
