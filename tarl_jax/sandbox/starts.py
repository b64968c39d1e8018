"""Where a task of τ²-bench starts, and what must hold at its end."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

from tarl_jax.config import InputError
from tarl_jax.config.plain import dumps
from tarl_jax.sandbox.domain import Domain, Record, State
from tarl_jax.sandbox.dual_control import SIDES, Side
from tarl_jax.types import Check


def start_of(domain: Domain, initial: Mapping[str, Any] | None, where: str = "task") -> State:
    """A fresh state as a task's `initial_state` makes it of the database.

    Raises InputError for one that cannot be made: the step and the reason; `where` names the task.
    """
    state = domain.new_state()
    if not initial:
        return state
    problem = next(problems_of(domain, initial), None)
    if problem:
        raise InputError(f"{where}: initial_state: {problem}")
    for table, records in ((initial.get("initialization_data") or {}).get("agent_data")
                           or {}).items():
        for key, record in records.items():
            state.add(table, key, _merged(state.get(table, key), record))
    for action in initial.get("initialization_actions") or ():
        try:
            perform(domain, state, *_called(action))
        except Exception as error:
            raise InputError(f"{where}: initial_state: {dumps(action)[:80]} failed:"
                             f" {error}") from error
    if domain.user:
        domain.user.sync(state)
    return state


def problems_of(domain: Domain, initial: Mapping[str, Any]) -> Iterator[str]:
    """What of an `initial_state` cannot be obeyed, each in a line; nothing is run."""
    if initial.get("message_history"):
        yield "message_history: a dialogue that has begun cannot be played on"
    for side, tables in (initial.get("initialization_data") or {}).items():
        # The benchmark itself then puts one side's database in place of the other's.
        if tables and (domain.user or side != "agent_data"):
            yield f"initialization_data: {side} cannot be set in this domain"
        for table in tables or {}:
            if table not in domain.database:
                yield f"initialization_data: there is no table {table!r}"
    unknown = sorted(k for k, v in initial.items() if v and k not in _FIELDS)
    if unknown:
        yield f"unknown field {unknown[0]!r}"
    for action in initial.get("initialization_actions") or ():
        if text := _misfit(domain, *_called(action)):
            yield f"initialization_actions: {text}"


def _called(action: Mapping[str, Any]) -> tuple[str, Mapping[str, Any], Side]:
    return action["func_name"], action.get("arguments") or {}, action.get("env_type", "assistant")


_FIELDS = ("message_history", "initialization_data", "initialization_actions")


def problem_of_check(domain: Domain, check: Check) -> str:
    """Why the domain cannot tell whether a check holds; empty where it can."""
    if not domain.user or check.name not in domain.user.checks.get(cast(Side, check.requestor), {}):
        return f"the domain {domain.name!r} has no {check.name!r} of {check.requestor!r}"
    return _misfit(domain, check.name, check.kwargs, check.requestor)


def perform(
    domain: Domain, state: State, name: str, kwargs: Mapping[str, Any], requestor: Side,
    sync: bool = True,
) -> Any:  # fmt: skip
    """Runs a tool, or what else a task may call at its start or its end, and returns its value.

    sync: whether both halves are then brought into step.
    Raises InputError for a function that there is not, and what the function raises.
    """
    function = _function(domain, name, requestor)
    if function is None:
        raise InputError(f"the domain {domain.name!r} has no {name!r} of {requestor!r}")
    value = function(state, **kwargs)
    if sync and domain.user:
        domain.user.sync(state)
    return value


def holds(domain: Domain, state: State, check: Check) -> bool:
    """Whether a check comes out as the task expects. What it cannot tell does not hold."""
    try:
        found = perform(domain, state.fork(), check.name, check.kwargs, cast(Side, check.requestor))
    except InputError:
        raise
    except Exception:  # whatever a task's arguments make of it
        return False
    return isinstance(found, bool) and found == check.expected


def _function(domain: Domain, name: str, requestor: Side) -> Callable[..., Any] | None:
    if requestor not in SIDES:
        return None
    if tool := domain.tools_of(requestor).get(name):
        return tool.function
    if domain.user is None:
        return None
    return {**domain.user.functions[requestor], **domain.user.checks[requestor]}.get(name)


def _misfit(domain: Domain, name: str, kwargs: Mapping[str, Any], requestor: str) -> str:
    """Why a function cannot be called so; empty where it can."""
    function = _function(domain, name, cast(Side, requestor))
    if function is None:
        return f"the domain {domain.name!r} has no {name!r} of {requestor!r}"
    try:
        inspect.signature(function).bind(None, **kwargs)
    except TypeError as error:
        return f"{name}: {error}"
    return ""


def _merged(old: Any, new: Any) -> Record:
    """The new value, laid over the old one where both are objects."""
    if not isinstance(old, dict) or not isinstance(new, dict):
        return new
    return {**old, **{key: _merged(old.get(key), value) for key, value in new.items()}}
