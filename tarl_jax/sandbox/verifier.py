"""Did an episode do what its task asked for? τ-bench's reward, by comparing final states.

Unlike the original, gold calls are replayed on a state of their own and never through the live
environment, and the required outputs are reported beside success instead of being part of it.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from tarl_jax.sandbox.domain import Domain, State
from tarl_jax.sandbox.starts import start_of


@dataclass(frozen=True)
class Verdict:
    """What `verify` found.

    success: the final database equals the one that the gold calls lead to.
    outputs_found: every required output was said to the user; true where none is required.
    missing_outputs: those that were not, as the task spells them.
    diff: readable lines, gold on the left and live on the right; empty exactly on success.
    """

    success: bool
    outputs_found: bool
    missing_outputs: tuple[str, ...]
    diff: tuple[str, ...]


def verify(
    domain: Domain,
    state: State,
    gold_calls: Sequence[tuple[str, dict[str, Any]]],
    required_outputs: Iterable[str] = (),
    agent_messages: Iterable[str] = (),
    start: Mapping[str, Any] | None = None,
) -> Verdict:
    """Compares the state an episode ended in with the one its gold calls lead to.

    start: the task's `initial_state`, if it has one.

    A gold call that is refused changes nothing, as in the original. A required output is found if,
    lower-cased, it occurs in one of the agent's messages, lower-cased and without commas.
    Raises ValueError if the state is not of this domain. Leaves the state as it is.
    """
    gold = _gold_state(domain, json.dumps(gold_calls), json.dumps(start))
    success = domain.same(state, gold)
    diff = () if success else tuple(domain.diff(state, against=gold))
    missing = unsaid(required_outputs, agent_messages)
    return Verdict(success, not missing, missing, diff)


def unsaid(required_outputs: Iterable[str], agent_messages: Iterable[str]) -> tuple[str, ...]:
    """The required outputs that occur in none of the messages."""
    said = [message.lower().replace(",", "") for message in agent_messages]
    return tuple(
        output
        for output in required_outputs
        if not any(output.lower() in message for message in said)
    )


def fulfilled(
    domain: Domain, state: State, gold_calls: Sequence[tuple[str, dict[str, Any]]],
    start: Mapping[str, Any] | None = None,
) -> tuple[int, ...]:  # fmt: skip
    """Which gold calls the state shows done, by their index, whoever did it and by which calls.

    A gold call is done where every value that it alone changes is as all gold calls together leave
    it (or, if it shares all of them with others, every value that it changes). One that changes
    nothing is never done: nothing would show it.
    """
    return tuple(
        index for index, goal in enumerate(
            _goals(domain, json.dumps(gold_calls), json.dumps(start))
        )
        if goal and all(_value_at(state, path) == value for path, value in goal)
    )


_Path = tuple[str, str, tuple[Any, ...]]  # table, key, and the way into the record
_ABSENT = "(absent)", None  # equal to no value of a database


@lru_cache(maxsize=256)
def _goals(domain: Domain, gold_calls: str, start: str) -> list[list[tuple[_Path, Any]]]:
    """Per gold call the values by which one sees that it is done."""
    state, changed = start_of(domain, json.loads(start)), []
    for name, kwargs in json.loads(gold_calls):
        before = state.fork()
        domain.call(state, name, kwargs)
        records = {**before.changes(), **state.changes()}
        changed.append({
            (table, key, path) for table, key in records
            for path in _changed(before.get(table, key), state.get(table, key), ())
        })
    times = Counter(path for paths in changed for path in paths)
    own = [{path for path in paths if times[path] == 1} or paths for paths in changed]
    return [
        [(path, _value_at(state, path)) for path in sorted(paths, key=repr)] for paths in own
    ]


def _changed(old: Any, new: Any, path: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    """The ways to the values in which two records differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in {**old, **new}:
            yield from _changed(old.get(key, _ABSENT), new.get(key, _ABSENT), (*path, key))
    elif isinstance(old, list) and isinstance(new, list):
        for index in range(max(len(old), len(new))):
            sides = [of[index] if index < len(of) else _ABSENT for of in (old, new)]
            yield from _changed(sides[0], sides[1], (*path, index))
    elif repr(old) != repr(new):
        yield path


def _value_at(state: State, path: _Path) -> Any:
    table, key, way = path
    value: Any = state.get(table, key)
    for step in way:
        found = isinstance(value, dict) and step in value
        found |= isinstance(value, list) and isinstance(step, int) and step < len(value)
        if not found:
            return _ABSENT
        value = value[step]
    return value


@lru_cache(maxsize=256)
def _gold_state(domain: Domain, gold_calls: str, start: str) -> State:
    # A group of episodes shares its task, so most calls of `verify` find the state here.
    state = start_of(domain, json.loads(start))
    for name, kwargs in json.loads(gold_calls):
        domain.call(state, name, kwargs)
    return state
