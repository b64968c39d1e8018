"""What was asked of a language model, and what came of it."""

from __future__ import annotations

import threading

from tarl_jax.llm.errors import FAULTS

COUNTS = (
    "calls",  # for an answer, wherever it came from
    "failed",  # of these, without one
    "cache_hits",  # or answered by an equal call that was under way
    "replayed",  # answered from a recording
    "requests",  # sent: attempts, the repeated ones included
    *(f"faults_{kind}" for kind in FAULTS),  # requests that ended so
    "refused",  # requests that no repetition would help (4xx)
    "unusable",  # answers that the caller could not read
    "prompt_tokens",
    "completion_tokens",
    "usd",
    "seconds_waiting",  # for a place, the rate limit or the next attempt, all threads together
    "seconds_asking",  # for the server, all threads together
)


class Ledger:
    """Counts by name, those of COUNTS. Safe to share between threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[str, float] = dict.fromkeys(COUNTS, 0)
        self._taken = dict(self._counts)

    def add(self, **counts: float) -> None:
        """Adds to the counts. Raises KeyError for a name that is not one of COUNTS."""
        with self._lock:
            for name, count in counts.items():
                self._counts[name] += count

    def snapshot(self) -> dict[str, float]:
        """All counts since the start."""
        with self._lock:
            return dict(self._counts)

    def take(self) -> dict[str, float]:
        """All counts since the last `take`."""
        with self._lock:
            found = {name: self._counts[name] - self._taken[name] for name in COUNTS}
            self._taken = dict(self._counts)
            return found
