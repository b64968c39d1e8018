"""The run directory: what a run says about itself, and whether it may be continued.

    config.json     every field of the config
    contents.json   hashes of what the config only names: tasks, database, tokenizer, frozen weights
    parts.json      name and source hash of each part of the user's own, if there are any
    versions.json   commit, packages, platform, command line and fields that changed, for each start
    run.lock        who writes there now (parallel/lock.py)
    metrics.jsonl, tensorboard/, trajectories/, checkpoints/, tau2/, curves.png, summary.json
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import datetime
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tarl_jax.config import ConfigError, RunConfig, TarlError
from tarl_jax.config.fields import fields, nested
from tarl_jax.config.plain import read_json
from tarl_jax.parallel.files import is_unfinished, new_folder, replace
from tarl_jax.parallel.lock import Lock

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "sentencepiece",
            "openai")
LOCK = "run.lock"
# What may differ between the first start of a run and a later one: it changes nothing that is
# learned, or only its rounding, as other devices do. Of files, `contents.json` holds what is in
# them. What evaluations are may change too; the run then says so.
FREE = (
    "workdir", "log", "checkpoint", "eval", "rl.steps", "warm_start.cache_dir", "mesh",
    "model.attention", "model.remat", "model.scan_layers", "model.pretrained", "model.size",
    "sandbox.data", "tasks.file", "tasks.tfds", "maths.file", "maths.tfds",
    "rl.micro_batch_tokens", "rl.pack", "rl.measure_after",
    *(f"rollout.{name}" for name in (
        "slots", "lanes", "straggler_fraction", "in_flight", "parked", "share_prefix",
        "episode_seconds", "step_seconds", "max_too_long", "journal",
    )),
    *(f"rollout.outside.{name}" for name in (
        "base_url", "model", "api_key_env", "folder", "reload", "reload_body", "reload_seconds",
        "timeout_seconds", "max_attempts", "backoff_seconds", "max_in_flight",
    )),
    "user.max_calls", "user.max_seconds", "judge.max_seconds", "judge.required",
    *(f"{group}.llm.{name}" for group in ("user", "judge") for name in (
        "base_url", "api_key_env", "timeout_seconds", "max_attempts", "backoff_seconds",
        "max_in_flight", "requests_per_minute", "tokens_per_minute", "max_calls", "max_usd",
        "usd_per_million_input", "usd_per_million_output", "cache_dir", "record", "replay",
        "response_format",
    )),
    *(f"speech.{name}" for name in (
        "cache_dir", "timeout_seconds", "workers", "retries", "base_url", "api_key_env",
        "recordings", "piper_voices",
    )),
)  # fmt: skip

# What may differ besides where a checkpoint is only read: who plays with the policy, and on what.
PLAYED = ("user", "judge", "reward", "rollout", "speech", "tasks", "shop", "maths")
MAY_CHANGE = ("held-out tasks",)  # of contents.json: evaluations are of them
Record = Mapping[str, Mapping[str, str]]  # of parts, as `training.parts.record` makes it


@contextlib.contextmanager
def claimed_run_dir(config: RunConfig) -> Iterator[tuple[Path, Lock]]:
    """The run directory, made where it is new, while this process alone may write there.

    Its name without a `workdir` is that of no other run, whenever they start. A directory that is
    empty when the block is left goes again, and so does what is in one that this process found
    empty, if its run could not begin: it ends with an error of ours, no stop, before its first
    checkpoint. Raises LockedError where another process has it, and leaves all as it is.
    """
    if config.workdir:
        path = Path(config.workdir).expanduser()
        above = _missing(path)[1:]
    else:
        stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
        above = _missing(Path("runs"))
        path = new_folder(Path(f"runs/{config.name}-{stamp}"))
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--workdir {path}: cannot be made ({error.strerror}); choose a folder"
                          " that can") from error
    try:
        with Lock(path / LOCK, f"run directory {path}").take() as lock:
            # Only now: whoever held the lock until a moment ago may have begun a run there.
            _require_run_or_nothing(path)
            found = _contents(path)
            try:
                yield path, lock
            except TarlError as error:
                # Not where this one was moved away, and another one may have begun in its place.
                if lock.mine() and not (found or checkpoints(path) or error.keeps_run):
                    _empty(path)
                raise
    finally:
        with contextlib.suppress(OSError):  # it holds something
            path.rmdir()
            for folder in above:
                folder.rmdir()


def open_run_dir(config: RunConfig, parts: Record | None = None) -> Path:
    """The run directory `config.workdir`, created or found again.

    parts: what the run records of its user's own parts.
    Raises ConfigError if it holds a run with another config or other parts (naming what differs),
    or files of something else.
    """
    parts = parts or {}
    path = Path(config.workdir).expanduser()
    record, history = path / "config.json", path / "versions.json"
    changed = check_run_dir(config, parts)
    if record.is_file() and not has_begun(path):
        _forget(path)
    path.mkdir(parents=True, exist_ok=True)
    write_json(record, flat(config))
    if parts:
        write_json(path / "parts.json", parts)
    starts = read_json(history, list) if history.is_file() else []
    write_json(history, [*starts, {**_versions(), "changed": changed}])
    return path


def check_run_dir(config: RunConfig, parts: Record | None = None) -> dict[str, list[object]]:
    """What `open_run_dir` refuses, without writing anything.

    Returns: of a run that has begun the fields that changed since, as [before, now].
    """
    path = Path(config.workdir).expanduser()
    record = path / "config.json"
    if not config.workdir:
        return {}
    _require_run_or_nothing(path)
    if not (record.is_file() and has_begun(path)):
        return {}
    before, now = _recorded(record), flat(config)
    _require_same(before, now, path)
    _require_same_parts(path, parts or {})
    return {k: [before.get(k), now[k]] for k in now if before.get(k) != now[k]}


def chosen(path: Path, steps: Sequence[int], step: int) -> int:
    """`step`, or the last of the run's checkpoints where it is -1. Raises ConfigError for none."""
    if not steps:
        raise ConfigError(f"--workdir {path}: has no checkpoint yet; let the run come to one")
    if step != -1 and step not in steps:
        raise ConfigError(f"--step={step}: {path} has checkpoints of the steps {list(steps)}; name"
                          " one, or -1 for the newest")
    return steps[-1] if step == -1 else step


def has_begun(path: Path) -> bool:
    """Whether a run has come to anything: a checkpoint, or metrics. Until then nothing is fixed."""
    metrics = path / "metrics.jsonl"
    return bool(checkpoints(path)) or (metrics.is_file() and metrics.stat().st_size > 0)


def checkpoints(path: Path) -> list[int]:
    """The steps of a run's whole checkpoints, oldest first."""
    found = (path / "checkpoints").glob("[0-9]*")
    return sorted(int(folder.name) for folder in found if folder.name.isdigit())


def changes(path: Path) -> list[str]:
    """In words, what the last start of a run has other than the one before."""
    starts = read_json(path / "versions.json", list)
    found = starts[-1].get("changed", {})
    lines = [f"config.{key}: {old!r} -> {new!r}" for key, (old, new) in found.items()
             if key != "workdir"]
    if any(key.startswith("eval.") for key in found):
        lines.append("evaluations from here on are others than those before: do not compare them")
    return lines


def require_contents(path: Path, now: Mapping[str, str], keep: bool = True) -> list[str]:
    """Holds a run to what its files held when it began; `now`: hashes by name.

    keep: writes down what `contents.json` does not say yet.
    Returns: lines about what may change and did. Raises ConfigError for what may not.
    """
    kept = path / "contents.json"
    before = read_json(kept, dict) if kept.is_file() else {}
    other = [name for name, value in now.items() if before.get(name, value) != value]
    fixed = [name for name in other if name not in MAY_CHANGE]
    if fixed:
        raise ConfigError(
            f"--workdir {path}: these are not what the run began with: {', '.join(fixed)}. What"
            " tasks.file, tasks.tfds, maths.file, maths.tfds, sandbox.data or model.pretrained"
            " name holds something else now, or another version of this program reads it"
            " (versions.json names the first): put the old ones back, or choose another --workdir"
        )
    if keep and now.items() - before.items():
        write_json(kept, {**before, **now})
    return [f"the {name} are others than at the last start" for name in other]


def _forget(path: Path) -> None:
    """Removes what a start has left that came to nothing and may have had another config."""
    for name in ("parts.json", "contents.json", "calibration.json", "maths_pass_rates.json"):
        (path / name).unlink(missing_ok=True)
    for name in ("reference", "ahead"):
        shutil.rmtree(path / name, ignore_errors=True)


def require_run(
    config: RunConfig, path: Path, parts: Record | None = None
) -> dict[str, list[object]]:
    """Raises ConfigError unless `path` holds a run of this policy, with these parts.

    For commands that read a checkpoint: users, judge, lengths and tasks may be others than the
    run's, and fields that another version had are passed over. Returns the fields that are, as
    [of the run, now].
    """
    record = path / "config.json"
    if not config.workdir or not record.is_file():
        raise ConfigError(f"--workdir {config.workdir!r}: name the directory of a run")
    now = flat(config)
    before = {key: value for key, value in _recorded(record).items() if key in now}
    _require_same(before, now, path, (*FREE, *PLAYED))
    _require_same_parts(path, parts or {})
    return {k: [before.get(k), now[k]] for k in now
            if k != "workdir" and before.get(k) != now[k]}


def read_run(path: Path) -> tuple[dict[str, Any], Path | None]:
    """(the nested values of a run's config, the file that its own parts come from, if it has any).

    Raises InputError where there is no run, or a file of it cannot be read.
    """
    record = path / "config.json"
    if not record.is_file():
        what = ("holds no run (no config.json)" if path.is_dir()
                else "is a file" if path.is_file() else "is not there")
        raise ConfigError(f"{path}: {what}; name the directory of a run, or begin one by --config")
    values = read_json(record)
    known = fields()
    strange = sorted(values.keys() - known.keys()) if isinstance(values, dict) else ["no object"]
    if strange:
        raise ConfigError(
            f"{record}: another version of this program wrote it: {', '.join(strange[:5])} is"
            " unknown here; give --config=FILE too, or use the version that versions.json names"
        )
    return nested(values), _parts_file(path)


def _parts_file(path: Path) -> Path | None:
    """The config file whose `get_parts()` a run began with; None where it has no such parts."""
    if not (path / "parts.json").is_file():
        return None
    for start in reversed(read_json(path / "versions.json", list)):
        for argument in start["command"]:
            if argument.startswith("--config="):
                name = argument.partition("=")[2].partition(":")[0]
                file = Path(start.get("folder", "."), name)
                if file.is_file():
                    return file
                raise ConfigError(f"{path}: has parts of its own, from {file}, which is not there:"
                                  " name the file that has them, --config=FILE")
    raise ConfigError(f"{path}: has parts of its own: name the file that has them, --config=FILE")


def write_json(path: Path, data: object) -> None:
    """Writes whole or not at all. Raises WriteError."""
    replace(path, json.dumps(data, indent=2) + "\n")


def _missing(path: Path) -> list[Path]:
    """The path and the folders above it, as far as they do not exist."""
    return [folder for folder in (path, *path.parents) if not folder.exists()]


def _require_run_or_nothing(path: Path) -> None:
    """Raises ConfigError where a folder holds something, but no run."""
    if (path / "config.json").is_file() or not path.is_dir():
        return
    if _contents(path):
        raise ConfigError(
            f"--workdir {path}: is not empty and holds no run (no config.json); choose another"
        )


def _contents(path: Path) -> list[Path]:
    """What is in a folder, without locks and what a killed writer left."""
    return [inside for inside in path.iterdir()
            if LOCK not in inside.name and not is_unfinished(inside)]


def _empty(path: Path) -> None:
    """Removes what is in a folder, all but locks."""
    for inside in path.iterdir():
        if inside.is_dir() and not inside.is_symlink():
            shutil.rmtree(inside, ignore_errors=True)
        elif LOCK not in inside.name:
            inside.unlink(missing_ok=True)


def flat(config: RunConfig) -> dict[str, object]:
    """Every field of the config by its key, as `config.json` holds them."""
    out: dict[str, object] = {}

    def walk(prefix: str, value: object) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                walk(f"{prefix}.{key}" if prefix else key, inner)
        else:
            out[prefix] = list(value) if isinstance(value, tuple) else value

    walk("", dataclasses.asdict(config))
    return out


def _recorded(record: Path) -> dict[str, object]:
    """A run's config by key; a field that it did not know has its default."""
    known = {key: field.default for key, field in fields().items()}
    listed = {k: list(v) if isinstance(v, tuple) else v for k, v in known.items()}
    said = read_json(record, dict)
    if not said.keys() & known.keys():
        raise ConfigError(f"{record}: holds no field of a run's config; choose another --workdir")
    return {**listed, **said}


def _require_same(
    before: dict[str, object], now: dict[str, object], path: Path, free: Sequence[str] = FREE
) -> None:
    def is_free(key: str) -> bool:
        return any(key == name or key.startswith(f"{name}.") for name in free)

    keys = sorted(k for k in before.keys() | now.keys() if not is_free(k))
    changed = [f"{k}: {before.get(k)!r} -> {now.get(k)!r}" for k in keys
               if before.get(k) != now.get(k)]
    if changed:
        raise ConfigError(
            f"--workdir {path}: holds a run with another config; a run continues only as it"
            f" began. Different: {'; '.join(changed)}. Leave these out, or choose another --workdir"
        )


def _require_same_parts(path: Path, now: Record) -> None:
    kept = path / "parts.json"
    before: Record = read_json(kept, dict) if kept.is_file() else {}
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
            f" it began. Different: {'; '.join(changed)}. Use the same parts, or another --workdir"
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
        "uncommitted_changes": _git("status", "--porcelain").splitlines()[:50],  # "M path"
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": packages,
        "devices": device_names(),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "folder": os.getcwd(),  # where the command ran: its paths may be relative
    }


def device_names() -> list[str]:
    """What the run computes on, as "4 x NVIDIA H100 80GB HBM3"; of all its processes."""
    import jax

    count = collections.Counter(device.device_kind for device in jax.devices())
    return [f"{number} x {kind}" for kind, number in count.items()]


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""
