"""Answers on disk: a cache that runs share, and the recording of one run.

Both hold JSON under the digest of the request. SQLite is the cache's whole machinery: a library
that wraps it would store pickles, which whoever can write the folder could make run code.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sqlite3
import threading
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tarl_jax.config import InputError, MissingFileError
from tarl_jax.config.plain import loads, plain
from tarl_jax.parallel.files import LineFile, replace
from tarl_jax.parallel.lock import Lock


def digest(request: Mapping[str, Any]) -> str:
    """Names a request by its content."""
    text = json.dumps(request, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(plain(text).encode()).hexdigest()


def is_answer(found: Any) -> bool:
    """Whether this is the record of a `transport.Completion`."""
    counts = ("prompt_tokens", "completion_tokens")
    return (isinstance(found, dict) and isinstance(found.get("text"), str)
            and all(isinstance(found.get(name, 0), int) for name in counts)
            and found.keys() <= {"text", "calls", *counts}
            and all({name: type(value) for name, value in call.items()}
                    == {"name": str, "arguments": str} for call in found.get("calls", ())))


class Cache:
    """Answers by digest in `folder`/llm.sqlite. Threads and processes may share it.

    A file that is none of SQLite's, or is damaged, is renamed to llm.sqlite.broken and another one
    begun; an answer in it that cannot be read is asked for anew. Raises InputError for a folder
    that cannot be written.
    """

    def __init__(self, folder: str | Path):
        self._path = Path(folder).expanduser() / "llm.sqlite"
        self._lock = threading.Lock()
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._opened()
        except sqlite3.OperationalError as error:
            raise InputError(f"{self._path}: cannot be opened ({error}); name another folder as the"
                             " cache") from None
        except sqlite3.DatabaseError as error:
            self._set_aside(error)
        except OSError as error:
            raise InputError(f"{folder}: cannot be a folder for the cache ({error.strerror}); name"
                             " another one") from None

    def get(self, name: str) -> dict[str, Any] | None:
        with self._lock:
            try:
                found = self._file.execute("SELECT json FROM answers WHERE digest = ?", (name,))
                row = found.fetchone()
            except sqlite3.OperationalError as error:
                raise InputError(f"{self._path}: cannot be read ({error})") from None
            except sqlite3.DatabaseError as error:
                self._set_aside(error)
                return None
        if row is None:
            return None
        with contextlib.suppress(ValueError, TypeError, AttributeError):
            answer = loads(row[0])
            if is_answer(answer):
                return answer
        return None

    def put(self, name: str, answer: Mapping[str, Any]) -> None:
        row = (name, json.dumps(answer))
        with self._lock:
            try:
                self._file.execute("INSERT OR REPLACE INTO answers VALUES (?, ?)", row)
            except sqlite3.OperationalError as error:
                raise InputError(f"{self._path}: cannot be written ({error})") from None
            except sqlite3.DatabaseError as error:
                self._set_aside(error)
                self._file.execute("INSERT OR REPLACE INTO answers VALUES (?, ?)", row)

    def close(self) -> None:
        with self._lock:
            self._file.close()

    def _opened(self) -> sqlite3.Connection:
        file = sqlite3.connect(
            self._path, timeout=30, isolation_level=None, check_same_thread=False
        )
        try:
            file.execute("PRAGMA journal_mode=WAL")
            file.execute("CREATE TABLE IF NOT EXISTS answers (digest TEXT PRIMARY KEY, json TEXT)")
        except sqlite3.DatabaseError:
            file.close()
            raise
        return file

    def _set_aside(self, error: Exception) -> None:
        if hasattr(self, "_file"):
            self._file.close()
        broken = self._path.with_name(f"{self._path.name}.broken")
        self._path.replace(broken)
        for ending in ("-wal", "-shm"):
            self._path.with_name(self._path.name + ending).unlink(missing_ok=True)
        warnings.warn(
            f"{self._path}: is no cache that can be read ({error}); it is now {broken}, and another"
            " one is begun", stacklevel=3
        )
        self._file = self._opened()


class Recording:
    """Outcomes by digest, one JSON line each: {"digest", "request", "answer" or "error"}.

    write: opens it to add to, and makes it where it is not there; one process at a time does. A
    last line that a killed run left unfinished is dropped; where another one is broken the file is
    kept as "<name>.broken", and goes on with the lines that can be read. Of two lines of one digest
    the later one counts. Failures that an earlier process wrote are forgotten, so that a run that
    continues asks again.
    Raises ValueError naming file and line for a broken one that is to be replayed,
    FileNotFoundError for no file, LockedError where another process writes it, WriteError.
    """

    def __init__(self, path: str | Path, *, write: bool):
        self.path = Path(path).expanduser()
        self._lock = threading.Lock()
        self._outcomes: dict[str, dict[str, Any]] = {}
        self._file: LineFile | None = None
        if not write:
            if not self.path.is_file():
                raise MissingFileError(f"{self.path}: there is no such recording")
            _, problems = self._read()
            if problems:
                raise InputError(f"{problems[0]}; mend or delete it")
            return
        owner = self.path.with_name(f"{self.path.name}.lock")
        self._owner = Lock(owner, f"recording {self.path}").take()
        try:
            if self.path.is_file():
                self._mend()
            self._outcomes = {n: o for n, o in self._outcomes.items() if "answer" in o}
            self._file = LineFile(self.path)
        except BaseException:
            self._owner.release()
            raise

    def get(self, name: str) -> dict[str, Any] | None:
        """{"answer": …} or {"error": …}; None if it is not there."""
        with self._lock:
            return self._outcomes.get(name)

    def put(self, name: str, request: Mapping[str, Any], outcome: dict[str, Any]) -> None:
        """Adds one line. Raises ValueError for a recording that is only read, WriteError."""
        if self._file is None:
            raise ValueError(f"{self.path}: is open for reading only")
        line = json.dumps({"digest": name, "request": request, **outcome})
        with self._lock:
            self._file.add(line)
            self._outcomes[name] = outcome

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._owner.release()

    def _mend(self) -> None:
        """Leaves whole lines alone in the file, and what there was beside it."""
        lines, problems = self._read()
        if problems:
            broken = self.path.with_name(f"{self.path.name}.broken")
            replace(broken, self.path.read_bytes())
            warnings.warn(
                f"{problems[0]}; {len(problems)} such lines are left out, the file with them is now"
                f" {broken}", stacklevel=3
            )
        whole = b"".join(line + b"\n" for line in lines)
        if whole != self.path.read_bytes():
            replace(self.path, whole)

    def _read(self) -> tuple[list[bytes], list[str]]:
        """Fills the outcomes; returns the lines that are whole, and what is wrong with others."""
        lines, problems = [], []
        data = self.path.read_bytes()
        whole = data.rfind(b"\n") + 1
        for number, line in enumerate(data[:whole].split(b"\n")[:-1], 1):
            try:
                name, outcome = _outcome(loads(line))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                problems.append(f"{self.path}:{number}: not a line of a recording ({error!r})")
                continue
            self._outcomes[name] = outcome
            lines.append(line)
        return lines, problems


def _outcome(record: Any) -> tuple[str, dict[str, Any]]:
    """(digest, outcome) of a line. Raises ValueError and its like for anything else."""
    found = {k: record[k] for k in ("answer", "error") if k in record}
    if len(found) != 1:
        raise ValueError("has neither an answer nor an error")
    if "answer" in found and not is_answer(found["answer"]):
        raise ValueError(f"its answer is {str(found['answer'])[:80]}")
    if "error" in found and found["error"].keys() != {"kind", "message"}:
        raise ValueError(f"its error is {str(found['error'])[:80]}")
    return str(record["digest"]), found
