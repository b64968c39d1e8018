"""The sandbox against a plain version that reloads, copies and hashes the whole database.

    python benchmarks/sandbox.py [--data FOLDER] [--rules tau|tau2] [--repeats 200]

FOLDER holds tau-bench's `retail/` and `airline/`; where it is not there, the embedded data is used.
By the rules of tau2-bench the hash is another (docs/sandbox.md), and telecom is measured too, on
its embedded data; what is hashed of it is the carrier's database.
The plain version is what a straightforward environment does: it parses the JSON for every episode,
and takes its hash over the text of the whole database. Both take turns in one process; times are
medians of CPU time, which a busy machine lengthens less than the clock's.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import random
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tarl_jax.sandbox import load_domain, verify
from tarl_jax.sandbox.domain import Domain, Refusal, State

WRITES = (1, 3, 10)
PLAIN_CALLS = 12  # at most: the plain version takes up to half a second
READ_SECONDS = 1.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/tau_bench"))
    parser.add_argument("--rules", choices=("tau", "tau2"), default="tau")
    parser.add_argument("--repeats", type=int, default=200)
    args = parser.parse_args()
    for name in ("retail", "airline", *(("telecom",) if args.rules == "tau2" else ())):
        folder = args.data / name
        data = folder if folder.is_dir() and name != "telecom" else None
        domain = load_domain(name, data, args.rules)
        text = json.dumps(domain.database)
        kind = "published" if data else "embedded"
        print(f"\n{name}, {kind} data, {len(text) / 1e6:.1f} MB of JSON")
        print(f"{'':34}{'ours':>12}{'plain':>12}{'ratio':>13}")
        for label, ours, plain in rows(domain, text, args.repeats):
            print(f"{label:34}{_time(ours):>12}{_time(plain):>12}{plain / ours:>12,.0f}x")
        print(f"{'read calls per second':34}{reads_per_second(domain):>12,.0f}")


def rows(domain: Domain, text: str, repeats: int) -> Iterator[tuple[str, float, float]]:
    """(what, our seconds, the plain version's seconds)."""
    domain.state_hash(domain.new_state())  # our text of the database is made once
    plain_repeats = min(repeats, PLAIN_CALLS)
    # Times a thousand: one call is shorter than the clock is fine.
    ours = median(lambda: [domain.new_state() for _ in range(1000)], repeats) / 1000
    yield "a fresh state, by reloading", ours, median(lambda: json.loads(text), plain_repeats)
    yield "a fresh state, by deepcopy", ours, median(
        lambda: copy.deepcopy(domain.database), max(3, plain_repeats // 4))
    for count in WRITES:
        states = [written(domain, count, seed) for seed in range(plain_repeats)]
        pairs = []
        for state in states:  # in turns
            whole = plain_tables(domain, state)
            begun = time.process_time()
            slow = plain_hash(whole, domain.rules)
            middle = time.process_time()
            fast = domain.state_hash(state)
            pairs.append((time.process_time() - middle, middle - begun))
            if slow != fast:
                raise RuntimeError(f"{domain.name}: the hashes differ after {count} writes")
        ours, plain = (statistics.median(column) for column in zip(*pairs, strict=True))
        yield f"hash after {count} writes", ours, plain
    for count in WRITES:
        calls, state = write_calls(domain, count, 0)
        ours = median(lambda: verify(domain, state, calls), repeats)  # noqa: B023
        whole = plain_tables(domain, state)

        def reload_and_compare() -> bool:
            gold = json.loads(text)
            return plain_hash(gold, domain.rules) == plain_hash(whole, domain.rules)  # noqa: B023

        yield f"verify, {count} gold writes", ours, median(
            reload_and_compare, max(3, plain_repeats // 4))


def plain_tables(domain: Domain, state: State) -> dict[str, Any]:
    """The agent's database as its benchmark holds it: telecom's tables are lists."""
    theirs = domain.user.tables if domain.user else ()
    tables = {t: dict(state.table(t)) for t in domain.database if t not in theirs}
    return {t: list(r.values()) for t, r in tables.items()} if domain.user else tables


def plain_hash(database: dict[str, Any], rules: str) -> str:
    if rules == "tau2":
        return hashlib.sha256(json.dumps(database, sort_keys=True).encode()).hexdigest()

    def frozen(value: Any) -> Any:
        if isinstance(value, dict):
            return tuple((key, frozen(item)) for key, item in sorted(value.items()))
        return tuple(frozen(item) for item in value) if isinstance(value, list) else value

    return hashlib.sha256(str(frozen(database)).encode()).hexdigest()


def write_calls(
    domain: Domain, count: int, seed: int
) -> tuple[list[tuple[str, dict[str, Any]]], State]:
    """That many calls that write, each to another record, and the state after them."""
    rng = random.Random(seed)
    state, calls = domain.new_state(), []
    table = {"retail": "orders", "airline": "reservations", "telecom": "customers"}[domain.name]
    for key in rng.sample(list(domain.database[table]), len(domain.database[table])):
        if domain.name == "retail":
            call = ("cancel_pending_order", {"order_id": key, "reason": "no longer needed"})
        elif domain.name == "airline":
            call = ("cancel_reservation", {"reservation_id": key})
        else:
            owned = {"customer_id": key, "line_id": domain.database[table][key]["line_ids"][0]}
            call = ("suspend_line", {**owned, "reason": "lost"})
        if not isinstance(domain.call(state, *call), Refusal):
            calls.append(call)
        if len(calls) == count:
            return calls, state
    raise RuntimeError(f"{domain.name}: the data admits only {len(calls)} writes")


def written(domain: Domain, count: int, seed: int) -> State:
    return write_calls(domain, count, seed)[1]


def reads_per_second(domain: Domain) -> float:
    """Calls of the two tools that read a user and an order or a reservation, in one thread."""
    table, tool, argument = {
        "retail": ("orders", "get_order_details", "order_id"),
        "airline": ("reservations", "get_reservation_details", "reservation_id"),
        "telecom": ("lines", "get_details_by_id", "id"),
    }[domain.name]
    calls = [(tool, {argument: key}) for key in list(domain.database[table])[:500]]
    users = list(domain.database.get("users", ()))[:500]
    calls += [("get_user_details", {"user_id": user_id}) for user_id in users]
    random.Random(0).shuffle(calls)
    state, done, begun = domain.new_state(), 0, time.process_time()
    while time.process_time() - begun < READ_SECONDS:
        for name, kwargs in calls:
            domain.call(state, name, kwargs)
        done += len(calls)
    return done / (time.process_time() - begun)


def median(function: Callable[[], Any], repeats: int) -> float:
    """Seconds of a call; one before the first that counts."""
    seconds = []
    for _ in range(repeats + 1):
        begun = time.process_time()
        function()
        seconds.append(time.process_time() - begun)
    return statistics.median(seconds[1:])


def _time(seconds: float) -> str:
    unit, size = next((u, s) for u, s in (("s", 1), ("ms", 1e-3), ("us", 1e-6), ("ns", 1e-9))
                      if seconds >= s or u == "ns")
    return f"{seconds / size:,.2f} {unit}"


if __name__ == "__main__":
    main()
