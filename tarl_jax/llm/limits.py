"""How much may be asked: requests and tokens per minute, and a budget for the whole run."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

from tarl_jax.llm.errors import BudgetSpent, LLMError

WINDOW = 60.0  # seconds


class RateLimit:
    """At most so many requests, and so many tokens, begin within any 60 seconds.

    Calls are let through in the order in which they ask. A request that alone is larger than
    `tokens` goes when nothing else is in the window. 0: no limit. Safe to share between threads.
    """

    def __init__(self, requests: int, tokens: int, clock: Callable[[], float] = time.monotonic):
        self._requests = requests
        self._tokens = tokens
        self._clock = clock
        self._lock = threading.Lock()
        self._booked: deque[list[float]] = deque()  # [start, tokens], by start

    def book(self, tokens: float, deadline: float | None = None) -> list[float]:
        """Takes a place for a request of about `tokens`; returns [when it may begin, tokens].

        Raises LLMError("deadline") where that would be after `deadline`, and books nothing.
        """
        with self._lock:
            now = self._clock()
            while self._booked and self._booked[0][0] <= now - WINDOW:
                self._booked.popleft()
            start = max(now, self._booked[-1][0] if self._booked else now)
            # From the newest place back: which of them must have left the window by then?
            held, count = tokens, 1
            for began, used in reversed(self._booked):
                held, count = held + used, count + 1
                full = self._requests and count > self._requests
                if full or (self._tokens and held > self._tokens):
                    start = max(start, began + WINDOW)
                    break
            if deadline is not None and start > deadline:
                raise LLMError("deadline", f"the rate limit lets it begin in {start - now:.1f} s")
            place = [start, tokens]
            self._booked.append(place)
            return place

    def settle(self, place: list[float], tokens: float) -> None:
        """Corrects a place to the tokens that the request has used."""
        with self._lock:
            place[1] = tokens


class Budget:
    """Requests and dollars that may still be spent; 0: no limit. Safe to share between threads.

    What is under way counts with its estimate, so that many requests at once do not overdraw.
    """

    def __init__(self, max_calls: int, max_usd: float, prefix: str):
        self._max_calls = max_calls
        self._max_usd = max_usd
        self._prefix = prefix
        self._lock = threading.Lock()
        self._calls = 0
        self._usd = 0.0

    def reserve(self, usd: float) -> None:
        """Counts one request of about that price. Raises BudgetSpent, and counts nothing."""
        with self._lock:
            if self._max_calls and self._calls >= self._max_calls:
                raise BudgetSpent(self._spent("max_calls", f"{self._calls} requests are sent"))
            if self._max_usd and self._usd + usd > self._max_usd:
                raise BudgetSpent(self._spent(
                    "max_usd", f"{self._usd:.4f} are spent and the next may cost {usd:.4f}"
                ))
            self._calls += 1
            self._usd += usd

    def settle(self, reserved: float, usd: float) -> None:
        """Puts what a request has cost in the place of its estimate."""
        with self._lock:
            self._usd += usd - reserved

    def _spent(self, name: str, what: str) -> str:
        limit = self._max_calls if name == "max_calls" else self._max_usd
        return (f"config.{self._prefix}.{name} = {limit}: {what}; raise it, and --workdir continues"
                " the run from its last checkpoint")
