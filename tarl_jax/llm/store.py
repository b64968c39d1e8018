"""Answers on disk: a cache that runs share, and the recording of one run.

Both hold JSON under the digest of the request. SQLite is the cache's whole machinery: a library
that wraps it would store pickles, which whoever can write the folder could make run code.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tarl_jax.config import InputError, MissingFileError


def digest(request: Mapping[str, Any]) -> str:
    """Names a request by its content."""
    text = json.dumps(request, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


class Cache:
    """Answers by digest in `folder`/llm.sqlite. Threads and processes may share it."""

    def __init__(self, folder: str | Path):
        folder = Path(folder).expanduser()
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._file = sqlite3.connect(
            folder / "llm.sqlite", timeout=30, isolation_level=None, check_same_thread=False
        )
        self._file.execute("PRAGMA journal_mode=WAL")
        self._file.execute(
            "CREATE TABLE IF NOT EXISTS answers (digest TEXT PRIMARY KEY, json TEXT)"
        )

    def get(self, name: str) -> dict[str, Any] | None:
        with self._lock:
            found = self._file.execute("SELECT json FROM answers WHERE digest = ?", (name,))
            row = found.fetchone()
        return None if row is None else json.loads(row[0])

    def put(self, name: str, answer: Mapping[str, Any]) -> None:
        with self._lock:
            self._file.execute(
                "INSERT OR REPLACE INTO answers VALUES (?, ?)", (name, json.dumps(answer))
            )

    def close(self) -> None:
        with self._lock:
            self._file.close()


class Recording:
    """Outcomes by digest, one JSON line each: {"digest", "request", "answer" or "error"}.

    write: opens it to add to, and makes it where it is not there. A last line that a killed run
    left unfinished is dropped; of two lines of one digest the later one counts. Failures that an
    earlier process wrote are then forgotten, so that a run that continues asks again.
    Raises ValueError naming file and line for a broken one, FileNotFoundError for no file.
    """

    def __init__(self, path: str | Path, *, write: bool):
        self.path = Path(path).expanduser()
        self._lock = threading.Lock()
        self._outcomes: dict[str, dict[str, Any]] = {}
        if not self.path.is_file() and not write:
            raise MissingFileError(f"{self.path}: there is no such recording")
        whole = self._read() if self.path.is_file() else 0
        if not write:
            self._file = None
            return
        self._outcomes = {n: o for n, o in self._outcomes.items() if "answer" in o}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("ab")
        self._file.truncate(whole)

    def get(self, name: str) -> dict[str, Any] | None:
        """{"answer": …} or {"error": …}; None if it is not there."""
        with self._lock:
            return self._outcomes.get(name)

    def put(self, name: str, request: Mapping[str, Any], outcome: dict[str, Any]) -> None:
        """Adds one line and flushes it. Raises ValueError for a recording that is only read."""
        if self._file is None:
            raise ValueError(f"{self.path}: is open for reading only")
        line = json.dumps({"digest": name, "request": request, **outcome}) + "\n"
        with self._lock:
            self._outcomes[name] = outcome
            self._file.write(line.encode())
            self._file.flush()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def _read(self) -> int:
        """Fills the outcomes; returns the bytes up to the last whole line."""
        data = self.path.read_bytes()
        whole = data.rfind(b"\n") + 1
        for number, line in enumerate(data[:whole].splitlines(), 1):
            try:
                record = json.loads(line)
                found = {k: record[k] for k in ("answer", "error") if k in record}
                if len(found) != 1:
                    raise ValueError("has neither an answer nor an error")
                self._outcomes[record["digest"]] = found
            except (ValueError, KeyError, TypeError) as error:
                raise InputError(
                    f"{self.path}:{number}: not a line of a recording ({error!r}); mend or delete"
                    " it"
                ) from error
        return whole
