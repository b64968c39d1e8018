"""What there is to look at, as JSON for the page: runs, files of episodes, tau2-bench's results.

Each source answers the same questions: `state`, `metrics`, `episodes`, `episode`, `clip`. Episodes
are read as they stand on disk, without the packages that training needs.
"""

from __future__ import annotations

import functools
import math
import re
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

from tarl_jax.config import InputError, MissingFileError
from tarl_jax.config.fields import fields
from tarl_jax.config.plain import dumps, loads, read_json
from tarl_jax.runs.directory import LOCK
from tarl_jax.runs.metrics import (
    CLIP_DIR,
    METRICS_FILE,
    RESULTS_FILE,
    TRAJECTORY_DIR,
    read_metrics,
    trajectory_files,
)
from tarl_jax.view.episodes import NO_EPISODE, summary, whole, whole_file

Json = dict[str, Any]
KINDS = {"train": "step", "eval": "eval"}  # of episodes, and how their files are named
LIVE_SECONDS = 120  # a run that wrote something, or held its lock, so lately goes on


class Source(Protocol):
    """One thing to look at."""

    name: str
    path: Path

    def state(self) -> Json:
        """Name, files of episodes by kind, what it is; "stamp" changes where anything does.

        Raises InputError where what is on the disk cannot be read, or is gone.
        """

    def metrics(self) -> list[Json]:
        """The records of `metrics.jsonl`; a results file has one, of kind "eval"."""

    def episodes(self, kind: str, step: int) -> list[Json]:
        """One summary per episode of a file."""

    def episode(self, kind: str, step: int, index: int) -> Json:
        """A whole episode."""

    def clip(self, name: str) -> Path:
        """The file of a clip."""


def open_source(path: str) -> Source:
    """A run's directory, a .jsonl file of episodes, or tau2-bench's results (.json, or a folder).

    Raises InputError for anything else.
    """
    found = Path(path).expanduser()
    if not found.exists():
        raise MissingFileError(f"{path}: no such run; name a run's directory, a .jsonl file of"
                               " episodes, or τ²-bench's results.json")
    if (found / RESULTS_FILE).is_file() or (found.is_file() and found.suffix == ".json"):
        results = Results(found)
        results.state(), results.metrics()  # reads it
        return results
    if found.is_dir() and not any((found / name).exists() for name in (
        METRICS_FILE, TRAJECTORY_DIR, "config.json"
    )):
        raise InputError(f"{path}: holds no run (no {METRICS_FILE}, no {TRAJECTORY_DIR}/); name a"
                         " run's directory")
    run = Run(found)
    if found.is_file():
        run.episodes("train", 0)
    return run


class Run:
    """A run's directory, or one file of episodes."""

    def __init__(self, path: Path):
        self.path = path
        self.name = path.resolve().name
        self._pieces: Callable[[Iterable[int]], dict[int, str]] | None = None

    def state(self) -> Json:
        if not self.path.exists():
            raise MissingFileError(f"{self.path}: is gone; somebody deleted or moved it")
        files = {kind: self._files(kind) for kind in KINDS}
        metrics = self.path / METRICS_FILE
        written = [_time(file) for file in (metrics, *_last(files))]
        config: Json = self._json("config.json", dict) or {}
        versions: list[Json] = self._json("versions.json", list) or []
        known = fields()
        changed = {
            key: value for key, value in config.items()
            if key not in known or value != _listed(known[key].default)
        }
        return {
            "name": self.name,
            "path": str(self.path),
            "files": {kind: list(of) for kind, of in files.items()},
            "live": self._is_live(max(written, default=0.0)),
            "steps": config.get("rl.steps"),
            "changed": changed,
            "start": versions[-1] if versions and isinstance(versions[-1], dict) else {},
            "stamp": repr((written, [len(of) for of in files.values()])),
        }

    def metrics(self) -> list[Json]:
        return read_metrics(self.path) if (self.path / METRICS_FILE).is_file() else []

    def episodes(self, kind: str, step: int) -> list[Json]:
        return [summary(e) for e in self._read(kind, step)]

    def episode(self, kind: str, step: int, index: int) -> Json:
        found = self._read(kind, step)
        if not 0 <= index < len(found):
            raise InputError(f"episode {index}: the file holds {len(found)} of them, from 0")
        ids = {i for s in found[index]["segments"] for i in s["ids"]}
        return {**found[index], "pieces": self._spelled(ids)}

    def clip(self, name: str) -> Path:
        folder = (self.path if self.path.is_dir() else self.path.parent)
        folder = folder / TRAJECTORY_DIR if self.path.is_dir() else folder
        if not re.fullmatch(r"[\w-]+\.(flac|wav)", name):
            raise InputError(f"clip {name!r}: no such clip")
        return folder / CLIP_DIR / name

    def _is_live(self, written: float) -> bool:
        """Whether somebody holds the run's lock, whom a step may take long, or it wrote something
        lately and its summary is not newer."""
        summary, lock = (_time(self.path / name) for name in ("summary.json", LOCK))
        lately = time.time() - LIVE_SECONDS
        return self.path.is_dir() and (lock > lately or lately < written > summary)

    def _files(self, kind: str) -> dict[int, Path]:
        if self.path.is_dir():
            return trajectory_files(self.path, KINDS[kind])
        return {0: self.path} if kind == "train" else {}

    def _read(self, kind: str, step: int) -> list[Json]:
        files = self._files(kind) if kind in KINDS else {}
        if step not in files:
            raise InputError(f"{self.name}: no episodes of kind {kind!r} at step {step}")
        return whole_file(files[step], files[step].stat().st_mtime_ns)

    def _json(self, name: str, kind: type) -> Any:
        path = self.path / name
        return read_json(path, kind) if path.is_file() else None

    def _spelled(self, ids: Iterable[int]) -> dict[int, str]:
        """What each token adds to the text; {} where the run's tokenizer is not at hand."""
        if self._pieces is None:
            self._pieces = _speller(self._json("config.json", dict) or {})
        return self._pieces(ids)


class Results:
    """A file or folder of tau2-bench's results."""

    def __init__(self, path: Path):
        self.path = path / RESULTS_FILE if path.is_dir() else path
        own = self.path.name != RESULTS_FILE
        self.name = self.path.stem if own else self.path.resolve().parent.name

    def state(self) -> Json:
        if not self.path.exists():
            raise MissingFileError(f"{self.path}: is gone; somebody deleted or moved it")
        info = read_json(self.path, dict).get("info") or {}
        try:
            said = {
                f"{who}.{name}": (info.get(f"{who}_info") or {}).get(name)
                for who in ("agent", "user") for name in ("implementation", "llm")
            } | {name: info.get(name) for name in ("num_trials", "max_steps", "max_errors", "seed")}
        except AttributeError as error:
            raise InputError(f"{self.path}: is no results.json of τ²-bench ({error!r})") from None
        return {
            "name": self.name, "path": str(self.path), "files": {"train": [], "eval": [0]},
            "live": False, "steps": None, "start": {},
            "changed": {key: value for key, value in said.items() if value is not None},
            "stamp": str(self.path.stat().st_mtime_ns),
        }

    def metrics(self) -> list[Json]:
        by_task: dict[str, list[bool]] = {}
        for episode in self._read():
            by_task.setdefault(episode["task"], []).append(episode["success"] is True)
        rates = {"eval/tasks": float(len(by_task))}
        for k in range(1, min([*map(len, by_task.values()), 4]) + 1 if by_task else 1):
            each = [math.comb(sum(of), k) / math.comb(len(of), k) for of in by_task.values()]
            rates[f"eval/pass^{k}"] = sum(each) / len(each)
        return [{"step": 0, "kind": "eval", **rates}]

    def episodes(self, kind: str, step: int) -> list[Json]:
        return [summary(e) for e in self._read()]

    def episode(self, kind: str, step: int, index: int) -> Json:
        found = self._read()
        if not 0 <= index < len(found):
            raise InputError(f"simulation {index}: the file holds {len(found)} of them, from 0")
        return {**found[index], "pieces": {}}

    def clip(self, name: str) -> Path:
        raise InputError(f"clip {name!r}: such a file has none")

    def _read(self) -> list[Json]:
        return _simulations(self.path, self.path.stat().st_mtime_ns)


@functools.lru_cache(maxsize=8)
def _simulations(path: Path, written: int) -> list[Json]:
    from tarl_jax.runs.tau2_results import read_results

    raw = read_json(path, dict).get("simulations") or []
    found = [loads(trajectory.to_json_line()) for trajectory in read_results(path)]
    # Further ones have files of their own.
    for place, (episode, simulation) in enumerate(zip(found, raw, strict=False)):
        judged = simulation.get("reward_info") or {}
        episode["reward"] = judged.get("reward")
        try:
            episode["facts"] = _checks(judged)
        except NO_EPISODE as error:
            raise InputError(f"{path}: simulation {place}: reward_info: {error!r}") from None
    return [whole(i, e) for i, e in enumerate(found)]


def _checks(judged: Json) -> Json:
    """What the benchmark checked, one line each."""
    found: Json = {}
    if judged.get("db_check"):
        found["database"] = "right" if judged["db_check"].get("db_match") else "wrong"
    for name, what, yes, no in (
        ("action_checks", "action", "made", "not made"),
        ("communicate_checks", "info", "said", "not said"),
        ("nl_assertions", "nl_assertion", "holds", "does not hold"),
        ("env_assertions", "env_assertion", "holds", "does not hold"),
    ):
        for check in judged.get(name) or ():
            of = check.get(what)
            if isinstance(of, dict):
                text = f"{of.get('name') or of.get('func_name')} {dumps(of.get('arguments') or {})}"
            else:
                text = str(of)
            good = check.get("met", check.get("action_match"))
            found[f"{what}: {text}"] = yes if good else no
    return found


def _time(path: Path) -> float:
    """When a file was last written; 0 where it is not there."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _last(files: dict[str, dict[int, Path]]) -> list[Path]:
    return [list(of.values())[-1] for of in files.values() if of]


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _speller(config: Json) -> Callable[[Iterable[int]], dict[int, str]]:
    """What decodes single tokens with a run's tokenizer; to nothing where that is not there."""
    folder, audio = config.get("model.pretrained"), bool(config.get("model.audio.encoder_layers"))
    try:
        if folder:
            from tarl_jax.text.pretrained_tokenizer import PretrainedTokenizer

            decode = PretrainedTokenizer(folder, audio).decode
        else:
            from tarl_jax.text.tokenizer import Tokenizer, embedded_model

            model = embedded_model(config.get("sandbox.domain", ""))
            decode = Tokenizer(model, with_audio=audio).decode
    except (OSError, ValueError):
        return lambda ids: {}

    def spelled(ids: Iterable[int]) -> dict[int, str]:
        try:
            return {token: decode([token]) for token in ids}
        except (IndexError, ValueError, TypeError, OverflowError):  # of another tokenizer
            return {}

    return spelled


def answer(sources: Sequence[Source], path: str) -> Any:
    """The JSON answer of the page's question `path`.

    "state"; "metrics/RUN"; "episodes/RUN/KIND/STEP"; "episode/RUN/KIND/STEP/INDEX", where RUN is a
    place among the sources. Raises InputError for any other, and for what is not there. A state has
    a "problem" where its run cannot be read, which leaves the others as they are.
    """
    name, *parts = path.split("/")
    if name == "state" and not parts:
        return [{**_state(source), "name": called}
                for source, called in zip(sources, _names(sources), strict=True)]
    shapes = {"metrics": 1, "episodes": 3, "episode": 4}
    numbers = [part for i, part in enumerate(parts) if i != 1]
    if shapes.get(name) != len(parts) or not all(n.isascii() and n.isdigit() for n in numbers):
        raise InputError(f"no such question: {path}")
    if int(parts[0]) >= len(sources):
        raise InputError(f"run {parts[0]}: there are {len(sources)}")
    source = sources[int(parts[0])]
    if name == "metrics":
        return source.metrics()
    if name == "episodes":
        return source.episodes(parts[1], int(parts[2]))
    return source.episode(parts[1], int(parts[2]), int(parts[3]))


def _state(source: Source) -> Json:
    try:
        return source.state()
    except (InputError, OSError) as error:
        return {"path": str(source.path), "files": {kind: [] for kind in KINDS}, "live": False,
                "steps": None, "changed": {}, "start": {}, "stamp": str(error),
                "problem": str(error)}


def _names(sources: Sequence[Source]) -> list[str]:
    """What each is called: its own name, and with the folders above it where others have that."""
    places = [source.path.resolve().parts for source in sources]
    found = []
    for source, place in zip(sources, places, strict=True):
        alike = [p for s, p in zip(sources, places, strict=True) if s.name == source.name]
        depth = 1
        while depth < len(place) and sum(p[-depth:] == place[-depth:] for p in alike) > 1:
            depth += 1
        found.append("/".join(place[-depth:]) if len(alike) > 1 else source.name)
    return found
