"""Processes that answer one request at a time, with a limit on the time that each may take.

A worker is any command that reads requests, one JSON object a line, and answers each with one line
of JSON, {"bytes": N, …} followed by N bytes, or {"error": kind, "message": …}. One that takes too
long or answers otherwise is killed with all that it started; the next request starts another.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tarl_jax.speech.synthesis import LEVELS, SpeechError, to_clip

_MAX_HEADER = 65_536
_TAIL = 2000  # bytes of its standard error that a dead worker is quoted with


def worker_command(engine: str) -> tuple[str, ...]:
    """Of a worker that speaks with an engine of `worker.py`."""
    # -P: without this folder on the path, where a module could hide one of the standard library.
    return (sys.executable, "-P", str(Path(__file__).with_name("worker.py")), engine)


class WorkerPool:
    """`workers` processes of one command, each started when it is first needed."""

    def __init__(self, command: Sequence[str], *, workers: int, timeout_seconds: float):
        self._timeout = timeout_seconds
        self._workers = [_Worker(command) for _ in range(workers)]
        self._idle: queue.LifoQueue[_Worker] = queue.LifoQueue()
        for worker in self._workers:
            self._idle.put(worker)

    def ask(self, request: Mapping[str, Any]) -> tuple[dict[str, Any], bytes]:
        """Header and payload of an answer; waits for an idle worker first.

        Raises SpeechError, of kind "timeout", "crashed", "format" or what the worker says.
        """
        worker = self._idle.get()
        try:
            header, payload = worker.ask(request, self._timeout)
        except BaseException:
            worker.kill()  # whatever it still writes belongs to no request
            raise
        finally:
            self._idle.put(worker)
        if "error" in header:
            raise SpeechError(header["error"], header["message"])
        return header, payload

    def say(self, what: str, request: Mapping[str, Any], rate: int) -> np.ndarray:
        """The clip of a request whose answer is 16-bit samples, so many a second.

        Raises SpeechError as `ask` does; of kind "rate", "format" or "silent", naming `what`, for
        another answer.
        """
        header, payload = self.ask(request)
        if header.get("rate") != rate:
            raise SpeechError("rate", f"{what}: {header.get('rate')} samples a second, not {rate}")
        if len(payload) % 2:
            raise SpeechError("format", f"{what}: {len(payload)} bytes are not 16-bit samples")
        return to_clip(np.frombuffer(payload, "<i2") / np.float32(LEVELS), rate, what)

    def close(self) -> None:
        """Kills the workers and waits for their end."""
        for worker in self._workers:
            worker.kill()

    @property
    def pids(self) -> list[int]:
        """Of the processes that run."""
        return [w.process.pid for w in self._workers if w.process is not None]


class _Worker:
    def __init__(self, command: Sequence[str]):
        self.process: subprocess.Popen[bytes] | None = None
        self._command = list(command)
        self._pending = b""

    def ask(self, request: Mapping[str, Any], timeout: float) -> tuple[dict[str, Any], bytes]:
        process = self.process or self._start()
        assert process.stdin is not None
        deadline = time.monotonic() + timeout
        try:
            process.stdin.write(json.dumps(request).encode() + b"\n")  # fits into a pipe's buffer
            process.stdin.flush()
        except BrokenPipeError:
            raise self._crashed() from None
        line = self._read_line(deadline)
        try:
            header = json.loads(line)
            size = 0 if "error" in header else int(header["bytes"])
            if "error" in header:
                header["message"]
        except (ValueError, TypeError, KeyError) as error:
            raise SpeechError("format", f"{self._command}: answered {line[:80]!r}") from error
        return header, self._read(size, deadline)

    def kill(self) -> None:
        process, self.process = self.process, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # it leads its own group: see _start
        process.wait()
        for stream in (process.stdin, process.stdout):
            assert stream is not None
            with contextlib.suppress(BrokenPipeError):
                stream.close()
        self._errors.close()

    def _start(self) -> subprocess.Popen[bytes]:
        self._pending = b""
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        self.process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors,
            start_new_session=True,
        )
        return self.process

    def _read_line(self, deadline: float) -> bytes:
        while b"\n" not in self._pending:
            if len(self._pending) > _MAX_HEADER:
                raise SpeechError("format", f"{self._command}: answered no line of JSON")
            self._more(deadline)
        line, _, self._pending = self._pending.partition(b"\n")
        return line

    def _read(self, size: int, deadline: float) -> bytes:
        while len(self._pending) < size:
            self._more(deadline)
        payload, self._pending = self._pending[:size], self._pending[size:]
        return payload

    def _more(self, deadline: float) -> None:
        assert self.process is not None and self.process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            if not selector.select(max(0.0, deadline - time.monotonic())):
                raise SpeechError("timeout", f"{self._command}: no answer in time; it was killed")
        chunk = os.read(self.process.stdout.fileno(), 1 << 20)
        if not chunk:
            raise self._crashed()
        self._pending += chunk

    def _crashed(self) -> SpeechError:
        assert self.process is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)  # if it only closed its output
        code = self.process.wait()
        self._errors.seek(-min(_TAIL, self._errors.seek(0, os.SEEK_END)), os.SEEK_END)
        said = self._errors.read().decode(errors="replace").strip()
        return SpeechError("crashed", f"{self._command}: ended with {code}. {said}".strip())
