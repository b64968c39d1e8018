"""The run directory: what a run says about itself, and whether it may be continued.

    config.json     every field of the config
    parts.json      name and source hash of each part of the user's own, if there are any
    versions.json   commit, packages, platform and command line, one record per start
    run.lock        who writes there now (parallel/lock.py)
    metrics.jsonl, tensorboard/, trajectories/, checkpoints/, curves.png, summary.json
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import importlib.metadata
import json
import platform
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from tarl_jax.config import ConfigError, RunConfig
from tarl_jax.config.plain import read_json
from tarl_jax.parallel.files import new_folder, replace
from tarl_jax.parallel.lock import Lock

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "sentencepiece",
            "openai")
LOCK = "run.lock"
# What may differ between the first start of a run and a later one: it changes no number of it, or
# only their rounding, as other devices do.
FREE = (
    "workdir", "log", "checkpoint", "eval", "rl.steps", "warm_start.cache_dir", "mesh",
    "model.attention", "model.remat", "model.scan_layers", "model.pretrained", "sandbox.data",
    *(f"{group}.llm.{name}" for group in ("user", "judge") for name in (
        "base_url", "api_key_env", "timeout_seconds", "max_attempts", "backoff_seconds",
        "max_in_flight", "requests_per_minute", "tokens_per_minute", "max_calls", "max_usd",
        "usd_per_million_input", "usd_per_million_output", "cache_dir", "record", "replay",
        "response_format",
    )),
    *(f"speech.{name}" for name in (
        "cache_dir", "timeout_seconds", "workers", "retries", "base_url", "api_key_env",
        "recordings",
    )),
)  # fmt: skip


Record = Mapping[str, Mapping[str, str]]  # of parts, as `training.parts.record` makes it


@contextlib.contextmanager
def claimed_run_dir(config: RunConfig) -> Iterator[tuple[Path, Lock]]:
    """The run directory, made where it is new, while this process alone may write there.

    Its name without a `workdir` is that of no other run, whenever they start. A directory that is
    empty when the block is left goes again. Raises LockedError where another process has it.
    """
    if config.workdir:
        path = Path(config.workdir).expanduser()
        _require_run_or_nothing(path)
    else:
        stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
        path = new_folder(Path(f"runs/{config.name}-{stamp}"))
    try:
        with Lock(path / LOCK, f"run directory {path}").take() as lock:
            yield path, lock
    finally:
        with contextlib.suppress(OSError):  # it holds something
            path.rmdir()


def open_run_dir(config: RunConfig, parts: Record | None = None) -> Path:
    """The run directory `config.workdir`, created or found again.

    parts: what the run records of its user's own parts.
    Raises ConfigError if it holds a run with another config or other parts (naming what differs),
    or files of something else.
    """
    parts = parts or {}
    path = Path(config.workdir).expanduser()
    record = path / "config.json"
    if record.is_file():
        _require_same(read_json(record), _flat(config), path)
        _require_same_parts(path, parts)
    _require_run_or_nothing(path)
    path.mkdir(parents=True, exist_ok=True)
    write_json(record, _flat(config))
    if parts:
        write_json(path / "parts.json", parts)
    history = path / "versions.json"
    starts = read_json(history) if history.is_file() else []
    write_json(history, [*starts, _versions()])
    return path


def require_run(config: RunConfig, path: Path, parts: Record | None = None) -> None:
    """Raises ConfigError unless `path` holds a run with this config and these parts."""
    record = path / "config.json"
    if not config.workdir or not record.is_file():
        raise ConfigError(f"--workdir {config.workdir!r}: name the directory of a run")
    _require_same(read_json(record), _flat(config), path)
    _require_same_parts(path, parts or {})


def write_json(path: Path, data: object) -> None:
    """Writes whole or not at all. Raises WriteError."""
    replace(path, json.dumps(data, indent=2) + "\n")


def _require_run_or_nothing(path: Path) -> None:
    """Raises ConfigError where a folder holds something, but no run."""
    if (path / "config.json").is_file() or not path.is_dir():
        return
    if any(LOCK not in inside.name for inside in path.iterdir()):
        raise ConfigError(
            f"--workdir {path}: is not empty and holds no run (no config.json); choose another"
        )


def _flat(config: RunConfig) -> dict[str, object]:
    out: dict[str, object] = {}

    def walk(prefix: str, value: object) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                walk(f"{prefix}.{key}" if prefix else key, inner)
        else:
            out[prefix] = list(value) if isinstance(value, tuple) else value

    walk("", dataclasses.asdict(config))
    return out


def _require_same(before: dict[str, object], now: dict[str, object], path: Path) -> None:
    def is_free(key: str) -> bool:
        return any(key == free or key.startswith(f"{free}.") for free in FREE)

    keys = sorted(k for k in before.keys() | now.keys() if not is_free(k))
    changed = [f"{k}: {before.get(k)!r} -> {now.get(k)!r}" for k in keys
               if before.get(k) != now.get(k)]
    if changed:
        raise ConfigError(
            f"--workdir {path}: holds a run with another config; a run continues only as it"
            " began. Different:\n  " + "\n  ".join(changed)
            + "\nUse the same config, or another --workdir"
        )


def _require_same_parts(path: Path, now: Record) -> None:
    kept = path / "parts.json"
    before: Record = read_json(kept) if kept.is_file() else {}
    changed = []
    for kind in sorted(before.keys() | now.keys()):
        old, new = before.get(kind), now.get(kind)
        if old != new:
            names = [part["name"] if part else "none" for part in (old, new)]
            same = " (the same name, another source)" if names[0] == names[1] else ""
            changed.append(f"{kind}: {names[0]} -> {names[1]}{same}")
    if changed:
        raise ConfigError(
            f"--workdir {path}: holds a run with other parts of your own; a run continues only as"
            " it began. Different:\n  " + "\n  ".join(changed)
            + "\nUse the same parts, or another --workdir"
        )


def _versions() -> dict[str, object]:
    packages = {}
    for name in PACKAGES:
        try:
            packages[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            packages[name] = "absent"
    return {
        "time": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted_changes": bool(_git("status", "--porcelain")),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": packages,
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
    }


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""
