"""Whether two answers mean the same, by the `math-verify` package, in a process of its own.

The package bounds its own work with SIGALRM, which works in the main thread alone and cannot
interrupt arithmetic on huge numbers; a policy writes such answers sooner or later. Here the package
runs in the main thread of a worker that is killed where it takes too long or too much memory.

    python -m tarl_jax.maths.symbolic

is that worker: it reads lines of JSON `[given, right]` and writes `true` or `false` for each.
"""

from __future__ import annotations

import importlib.util
import json
import select
import subprocess
import sys
import threading
from typing import IO, Any

from tarl_jax.maths.answers import letters, number, separated

INNER_SECONDS = 4  # that the package allows itself for a step of its work
MEMORY = 4 * 2**30  # bytes of address space of the worker
LONGEST = 2_000  # characters; a longer answer is wrong without a look


class SymbolicChecker:
    """Compares answers; starts its worker when first needed, and again where it had to be killed.

    Safe to call from any thread. Raises ImportError where `math-verify` is not installed.
    """

    def __init__(self, seconds: float = 30.0):
        """seconds: after which an answer counts as wrong; the package's own limits come first."""
        if importlib.util.find_spec("math_verify") is None:
            raise ImportError(
                "answers that are not plain numbers are checked by the package math-verify, which"
                " is not installed: pip install -e '.[maths]'"
            )
        self._seconds = seconds
        self._lock = threading.Lock()
        self._worker: subprocess.Popen[str] | None = None

    def __call__(self, given: str, right: str) -> bool:
        """Whether `given` equals the `right` answer, both in LaTeX without dollar signs.

        Where the worker does not answer in time, or dies, the answer is wrong.
        """
        one, other = number(given), number(right)
        if one is not None and other is not None:
            return one == other
        if len(given) > LONGEST:
            return False
        word, other_word = letters(given), letters(right)
        if word is not None and other_word is not None:
            return word == other_word  # the package takes letters for factors: cat is act
        with self._lock:
            worker = self._running()
            try:
                _pipe(worker.stdin).write(json.dumps([separated(given), separated(right)]) + "\n")
                _pipe(worker.stdin).flush()
                ready, _, _ = select.select([_pipe(worker.stdout)], [], [], self._seconds)
                line = _pipe(worker.stdout).readline() if ready else ""
            except BrokenPipeError:
                line = ""
            if not line:
                self._end()
            return line.strip() == "true"

    def close(self) -> None:
        """Ends the worker, if there is one."""
        with self._lock:
            self._end()

    def _running(self) -> subprocess.Popen[str]:
        if self._worker is None:
            self._worker = subprocess.Popen(
                [sys.executable, "-m", __name__],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                start_new_session=True,  # Ctrl-C is for the run, which ends the step first
            )
        return self._worker

    def _end(self) -> None:
        if self._worker is not None:
            self._worker.kill()
            self._worker.communicate()
            self._worker = None


def _pipe(stream: IO[str] | None) -> IO[str]:
    assert stream is not None  # Popen was asked for both
    return stream


def _equal(given: str, right: str) -> bool:
    from math_verify import LatexExtractionConfig, parse, verify

    def read(text: str) -> list[Any]:
        return parse(
            f"\\boxed{{{text}}}", extraction_config=[LatexExtractionConfig()],
            parsing_timeout=INNER_SECONDS,
        )

    return bool(verify(read(right), read(given), timeout_seconds=INNER_SECONDS))


def _work() -> None:
    import logging
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    logging.disable()
    for line in sys.stdin:
        given, right = json.loads(line)
        try:
            verdict = _equal(given, right)
        except Exception:  # whatever a strange answer does to the parser: it is not right
            verdict = False
        print(json.dumps(verdict), flush=True)


if __name__ == "__main__":
    _work()
