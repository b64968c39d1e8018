"""How much of an engine's throughput is left when clients come and go, in a simulation.

    python benchmarks/arrivals.py

Simulated are 64 clients of 12 turns each, one thread that serves HTTP at so many milliseconds a
request, and an engine whose steps take so long, with and without the waiting of
`rollout/arrivals.py`, whose own code decides. "shared": HTTP and engine share one core. Printed are
shares of the throughput of the same engine with answers at once, which writes in bursts of 48;
means of five seeds. Nothing of the project but that code takes part, and no device.
"""

from __future__ import annotations

import dataclasses
import heapq
import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from tarl_jax.rollout.arrivals import Arrivals

CLIENTS, TURNS, LONGEST = 64, 12, 48
LEFT = 0.5  # of the rows that write: so few end a burst
FED = 16  # rows that one program feeds


@dataclasses.dataclass(frozen=True)
class Case:
    """Seconds of a step, of feeding FED rows, of a request, that a client takes to go on.

    least, more: tokens of a turn, the second the mean of what comes on top.
    """

    name: str
    step: float
    feed: float
    request: float = 0.0
    away: float = 0.001
    shared: bool = False
    least: int = 4
    more: float = 30.0


class Http:
    """Requests on their way in and out, one at a time."""

    def __init__(self, case: Case):
        self._half = case.request / 2
        self._away = case.away
        self._queue = [(0.0, number, True) for number in range(CLIENTS)]
        self._free = 0.0
        self.inbox: list[tuple[float, int]] = []

    def answered(self, client: int, now: float) -> None:
        heapq.heappush(self._queue, (now, client, False))

    def next_at(self) -> float:
        """When it begins with the next one."""
        return max(self._queue[0][0], self._free) if self._queue else float("inf")

    def step(self, slower: float = 1.0) -> None:
        begin = self.next_at()
        _, client, comes = heapq.heappop(self._queue)
        self._free = begin + self._half * slower
        if comes:
            self.inbox.append((self._free, client))
        else:
            heapq.heappush(self._queue, (self._free + self._away, client, True))

    def until(self, now: float) -> None:
        while self.next_at() + self._half <= now:
            self.step()

    def next_arrival(self) -> float:
        while not self.inbox and self._queue:
            self.step()
        return self.inbox[0][0] if self.inbox else float("inf")


def seconds(case: Case, burst: int, waits: bool, seed: int) -> float:
    """That all turns take."""
    rng = random.Random(seed)
    lengths = [[min(LONGEST, case.least + int(rng.expovariate(1 / case.more)))
                for _ in range(TURNS)] for _ in range(CLIENTS)]
    http, arrivals, now, took = Http(case), Arrivals(), 0.0, 0.0
    writing: dict[int, int] = {}
    turn, last, done = [0] * CLIENTS, {}, 0

    def take() -> int:
        count = 0
        while http.inbox and http.inbox[0][0] <= now:
            at, client = http.inbox.pop(0)
            writing[client], count = lengths[client][turn[client]], count + 1
            if client in last:
                arrivals.came(client, last[client], at)
        return count

    while done < CLIENTS:
        http.until(now)
        fresh = take()
        if not writing:
            now = max(now, http.next_arrival())
            fresh += take()
        begun = now
        while waits and (wait := min(arrivals.patience(len(writing), took, now),
                                     begun + took / 2 - now)) > 0:
            at = http.next_arrival()
            now = min(max(at, now), now + wait)
            if at > now:
                break
            fresh += take()
        few, steps, before = int(LEFT * len(writing)), 1, now
        while steps < burst and sum(left > steps for left in writing.values()) > few:
            steps += 1
        now = _worked(case, http, now, case.feed * -(-fresh // FED) + case.step * steps)
        took += (now - before - took) / 4 if took else now - before
        for client in list(writing):
            writing[client] -= steps
            if writing[client] <= 0:
                del writing[client]
                turn[client] += 1
                done += turn[client] == TURNS
                if turn[client] < TURNS:
                    http.answered(client, now)
                    arrivals.left(client, now)
                    last[client] = now
    return now


def _worked(case: Case, http: Http, now: float, work: float) -> float:
    """When the device has done its work; on a shared core both are half as fast."""
    while case.shared and work > 1e-9:
        if http.next_at() <= now:
            http.step(slower=2.0)
            now, work = now + case.request, work - case.request / 2
        else:
            part = min(work, http.next_at() - now)
            now, work = now + part, work - part
    http.until(now + max(work, 0.0))
    return now + max(work, 0.0)


def main() -> None:
    cases = [
        Case("20 ms a step, 1 ms a request", 0.02, 0.03, 0.001),
        Case("20 ms, 1.5 ms", 0.02, 0.03, 0.0015),
        Case("20 ms, 1 ms, clients away for 100 ms", 0.02, 0.03, 0.001, away=0.1),
        Case("8 ms, 1.5 ms, one core", 0.008, 0.02, 0.0015, shared=True),
        Case("20 ms, 1 ms, turns of 8 tokens", 0.02, 0.03, 0.001, least=2, more=6.0),
        Case("8 ms, 1.5 ms, turns of 8 tokens, one core", 0.008, 0.02, 0.0015, shared=True,
             least=2, more=6.0),
    ]
    for case in cases:
        alone = dataclasses.replace(case, request=0.0, away=0.0, shared=False)
        whole = sum(seconds(alone, LONGEST, False, seed) for seed in range(5))
        shares = []
        for waits in (False, True):
            for burst in (4, 8, 16):
                share = whole / sum(seconds(case, burst, waits, seed) for seed in range(5))
                shares.append(f"{'waiting, ' if waits else ''}bursts of {burst} {share:.0%}")
        print(f"{case.name}: {'; '.join(shares)}")


if __name__ == "__main__":
    main()
