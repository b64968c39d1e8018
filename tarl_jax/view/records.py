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
from tarl_jax.config.plain import dumps, loads, read_json, read_lines
from tarl_jax.runs.metrics import (
    CLIP_DIR,
    METRICS_FILE,
    RESULTS_FILE,
    TRAJECTORY_DIR,
    read_metrics,
    trajectory_files,
)

Json = dict[str, Any]
KINDS = {"train": "step", "eval": "eval"}  # of episodes, and how their files are named
LIVE_SECONDS = 120  # a run that wrote something so lately goes on


class Source(Protocol):
    """One thing to look at."""

    name: str

    def state(self) -> Json:
        """Name, files of episodes by kind, what it is; "stamp" changes where anything does."""

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
    if (found / RESULTS_FILE).is_file():
        return Results(found)
    if found.is_dir():
        if not ((found / METRICS_FILE).is_file() or (found / TRAJECTORY_DIR).is_dir()):
            raise InputError(f"{path}: holds no run (no {METRICS_FILE}, no {TRAJECTORY_DIR}/)")
        return Run(found)
    if not found.is_file():
        raise MissingFileError(f"{path}: no such run")
    return Results(found) if found.suffix == ".json" else Run(found)


class Run:
    """A run's directory, or one file of episodes."""

    def __init__(self, path: Path):
        self._path = path
        self.name = path.resolve().name
        self._pieces: Callable[[Iterable[int]], dict[int, str]] | None = None

    def state(self) -> Json:
        files = {kind: self._files(kind) for kind in KINDS}
        metrics = self._path / METRICS_FILE
        written = [f.stat().st_mtime for f in (metrics, *_last(files)) if f.is_file()]
        config, versions = (self._json(name) for name in ("config.json", "versions.json"))
        known = fields()
        changed = {
            key: value for key, value in (config or {}).items()
            if key not in known or value != _listed(known[key].default)
        }
        return {
            "name": self.name,
            "path": str(self._path),
            "files": {kind: list(of) for kind, of in files.items()},
            "live": bool(written) and time.time() - max(written) < LIVE_SECONDS
            and self._path.is_dir() and not self._has_ended(max(written)),
            "steps": (config or {}).get("rl.steps"),
            "changed": changed,
            "start": (versions or [{}])[-1],
            "stamp": repr((written, [len(of) for of in files.values()])),
        }

    def metrics(self) -> list[Json]:
        return read_metrics(self._path) if (self._path / METRICS_FILE).is_file() else []

    def episodes(self, kind: str, step: int) -> list[Json]:
        return [_summary(i, e) for i, e in enumerate(self._read(kind, step))]

    def episode(self, kind: str, step: int, index: int) -> Json:
        found = self._read(kind, step)
        if not 0 <= index < len(found):
            raise InputError(f"episode {index}: the file holds 0 to {len(found) - 1}")
        data = found[index]
        ids = {i for s in data["segments"] for i in s["token_ids"]}
        return {**_whole(index, data), "pieces": self._spelled(ids)}

    def clip(self, name: str) -> Path:
        folder = (self._path if self._path.is_dir() else self._path.parent)
        folder = folder / TRAJECTORY_DIR if self._path.is_dir() else folder
        if not re.fullmatch(r"[\w-]+\.(flac|wav)", name):
            raise InputError(f"clip {name!r}: no such clip")
        return folder / CLIP_DIR / name

    def _has_ended(self, written: float) -> bool:
        """Whether the run's summary is newer than what it wrote last."""
        path = self._path / "summary.json"
        return path.is_file() and path.stat().st_mtime >= written

    def _files(self, kind: str) -> dict[int, Path]:
        if self._path.is_dir():
            return trajectory_files(self._path, KINDS[kind])
        return {0: self._path} if kind == "train" else {}

    def _read(self, kind: str, step: int) -> list[Json]:
        files = self._files(kind) if kind in KINDS else {}
        if step not in files:
            raise InputError(f"{self.name}: no episodes of kind {kind!r} at step {step}")
        return _lines(files[step], files[step].stat().st_mtime_ns)

    def _json(self, name: str) -> Any:
        path = self._path / name
        return read_json(path) if path.is_file() else None

    def _spelled(self, ids: Iterable[int]) -> dict[int, str]:
        """What each token adds to the text; {} where the run's tokenizer is not at hand."""
        if self._pieces is None:
            self._pieces = _speller(self._json("config.json") or {})
        return self._pieces(ids)


class Results:
    """A file or folder of tau2-bench's results."""

    def __init__(self, path: Path):
        self._path = path / RESULTS_FILE if path.is_dir() else path
        own = self._path.name != RESULTS_FILE
        self.name = self._path.stem if own else self._path.resolve().parent.name

    def state(self) -> Json:
        info = read_json(self._path, dict).get("info") or {}
        said = {
            f"{who}.{name}": (info.get(f"{who}_info") or {}).get(name)
            for who in ("agent", "user") for name in ("implementation", "llm")
        } | {name: info.get(name) for name in ("num_trials", "max_steps", "max_errors", "seed")}
        return {
            "name": self.name, "path": str(self._path), "files": {"train": [], "eval": [0]},
            "live": False, "steps": None, "start": {},
            "changed": {key: value for key, value in said.items() if value is not None},
            "stamp": str(self._path.stat().st_mtime_ns),
        }

    def metrics(self) -> list[Json]:
        by_task: dict[str, list[bool]] = {}
        for episode in self._read():
            by_task.setdefault(episode["task"]["task_id"], []).append(episode["success"] is True)
        rates = {"eval/tasks": float(len(by_task))}
        for k in range(1, min([*map(len, by_task.values()), 4]) + 1):
            each = [math.comb(sum(of), k) / math.comb(len(of), k) for of in by_task.values()]
            rates[f"eval/pass^{k}"] = sum(each) / len(each)
        return [{"step": 0, "kind": "eval", **rates}]

    def episodes(self, kind: str, step: int) -> list[Json]:
        return [_summary(i, e) for i, e in enumerate(self._read())]

    def episode(self, kind: str, step: int, index: int) -> Json:
        found = self._read()
        if not 0 <= index < len(found):
            raise InputError(f"simulation {index}: the file holds 0 to {len(found) - 1}")
        return {**_whole(index, found[index]), "pieces": {}}

    def clip(self, name: str) -> Path:
        raise InputError(f"clip {name!r}: such a file has none")

    def _read(self) -> list[Json]:
        return _simulations(self._path, self._path.stat().st_mtime_ns)


@functools.lru_cache(maxsize=8)
def _simulations(path: Path, written: int) -> list[Json]:
    from tarl_jax.runs.tau2_results import read_results

    raw = read_json(path, dict).get("simulations") or []
    found = [loads(trajectory.to_json_line()) for trajectory in read_results(path)]
    # Further ones have files of their own.
    for episode, simulation in zip(found, raw, strict=False):
        judged = simulation.get("reward_info") or {}
        episode["reward"] = judged.get("reward")
        episode["facts"] = _checks(judged)
    return found


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


@functools.lru_cache(maxsize=16)
def _lines(path: Path, written: int) -> list[Json]:
    """The episodes of a file, read once for each time that it was written."""
    found = []
    for where, line in read_lines(path):
        try:
            episode = loads(line)
            _summary(0, episode)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{where}: not an episode ({type(error).__name__}: {error})") from None
        found.append(episode)
    return found


def _summary(index: int, data: Json) -> Json:
    """What a list of episodes shows of one."""
    scores = data.get("turn_scores")
    return {
        "index": index,
        "task": data["task"]["task_id"],
        "kind": data["task"].get("kind", "tool"),
        "success": data["success"],
        "reward": data["reward"],
        "scores": scores,
        "minors": data.get("turn_minors"),
        "stop": data["stop_reason"],
        "turns": sum(s["role"] == "agent" for s in data["segments"]),
        "tokens": sum(len(s.get("token_ids", ())) for s in data["segments"]),
        "spoken": any(s.get("sound") for s in data["segments"]),
        "opening": next((s["text"] for s in data["segments"] if s["role"] == "user"), "")[:200],
    }


def _whole(index: int, data: Json) -> Json:
    kept = ("seed", "outputs_found", "diff", "gold_diff", "judge_notes", "counted", "reward_parts",
            "seconds", "advantages", "facts", "user_faults")
    task = {key: data["task"].get(key) for key in (
        "task_id", "user_id", "instruction", "gold_calls", "outputs", "split", "source", "kind",
        "expert_turns", "persona", "assertions")}
    return {
        **_summary(index, data),
        **{key: data[key] for key in kept if key in data},
        "about": task,
        "segments": [_segment(segment) for segment in data["segments"]],
    }


def _segment(segment: Json) -> Json:
    """A segment with what was thought, said and called apart."""
    text, calls = segment["text"], segment.get("calls") or []
    thought = segment.get("thought") or ""
    if segment["role"] == "agent" and "message" in segment:
        read = segment["message"] or segment["unheard"] or calls
        text = segment["message"] if read else text
    elif segment["role"] == "agent":
        thought, _, text = text.rpartition("</think>")
        thought, text = thought.removeprefix("<think>").strip(), text.strip()
        if segment.get("call"):
            calls = [segment["call"]]
            text = _CALL.sub("", text).strip()
    return {
        "role": segment["role"], "turn": segment["turn"], "text": text, "thought": thought,
        "unheard": segment.get("unheard", ""), "calls": calls, "info": segment.get("info", {}),
        "sound": segment.get("sound"),
        "ids": segment.get("token_ids", []), "sampled": segment.get("sampled", []),
        "log_probs": segment.get("log_probs", []),
    }


_CALL = re.compile(r"<tool_call>.*?</tool_call>", re.DOTALL)


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
        except (IndexError, ValueError):  # of another tokenizer
            return {}

    return spelled


def answer(sources: Sequence[Source], path: str) -> Any:
    """The JSON answer of the page's question `path`.

    "state"; "metrics/RUN"; "episodes/RUN/KIND/STEP"; "episode/RUN/KIND/STEP/INDEX", where RUN is a
    place among the sources. Raises InputError for any other, and for what is not there.
    """
    name, *parts = path.split("/")
    if name == "state" and not parts:
        return [source.state() for source in sources]
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
