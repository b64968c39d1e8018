"""What was asked of a language model, and what came of it."""

from __future__ import annotations

import threading
from collections import Counter

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
        self._counts: Counter[str] = Counter()
        self._taken: Counter[str] = Counter()

    def add(self, **counts: float) -> None:
        """Adds to the counts. Raises KeyError for a name that is not one of COUNTS."""
        with self._lock:
            for name, count in counts.items():
                if name not in COUNTS:
                    raise KeyError(f"no count is named {name!r}: there are {', '.join(COUNTS)}")
                self._counts[name] += count  # type: ignore[assignment]  # seconds and dollars too

    def snapshot(self) -> dict[str, float]:
        """All counts since the start."""
        with self._lock:
            return {name: self._counts[name] for name in COUNTS}

    def take(self) -> dict[str, float]:
        """All counts since the last `take`."""
        with self._lock:
            found = {name: self._counts[name] - self._taken[name] for name in COUNTS}
            self._taken = self._counts.copy()
            return found
