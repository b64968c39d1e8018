"""Where a task of τ²-bench starts, and what must hold at its end."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

from tarl_jax.config import InputError
from tarl_jax.config.plain import dumps
from tarl_jax.sandbox.domain import Domain, Record, State, ToolError
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
            try:
                known = state.get(table, key)
            except KeyError:
                known = None
            state.add(table, key, _typed(domain, table, _merged(known, record), where))
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
    data, actions = initial.get("initialization_data"), initial.get("initialization_actions")
    if not isinstance(data or {}, Mapping) or not isinstance(actions or [], list):
        yield "initialization_data must be an object, initialization_actions a list"
        return
    if initial.get("message_history"):
        yield "message_history: a dialogue that has begun cannot be played on"
    for side, tables in (data or {}).items():
        # The benchmark itself then puts one side's database in place of the other's.
        if tables and (domain.user or side != "agent_data"):
            yield f"initialization_data: {side} cannot be set in this domain"
        elif not isinstance(tables or {}, Mapping):
            yield f"initialization_data: {side} must be an object of tables"
        else:
            yield from _problems_of_tables(domain, tables or {})
    unknown = sorted(k for k, v in initial.items() if v and k not in _FIELDS)
    if unknown:
        yield f"unknown field {unknown[0]!r}"
    for action in actions or ():
        if not _is_call(action):
            yield (f"initialization_actions: {dumps(action)[:80]}: must have a func_name, and"
                   " arguments that are an object")
        elif text := _misfit(domain, *_called(action)):
            yield f"initialization_actions: {text}"


def _problems_of_tables(domain: Domain, tables: Mapping[str, Any]) -> Iterator[str]:
    for table, records in tables.items():
        if table not in domain.database:
            yield f"initialization_data: there is no table {table!r}"
        elif not isinstance(records, Mapping) or not all(
            isinstance(r, Mapping) for r in records.values()
        ):
            yield f"initialization_data: {table} must be an object of records by their ids"


def _is_call(action: Any) -> bool:
    return (
        isinstance(action, Mapping) and isinstance(action.get("func_name"), str)
        and isinstance(action.get("arguments") or {}, Mapping)
        and all(isinstance(name, str) for name in action.get("arguments") or {})
        and isinstance(action.get("env_type", "assistant"), str)
    )


def _typed(domain: Domain, table: str, record: Record, where: str) -> Record:
    """The record as the domain's rules hold it: τ² has numbers as floats, say."""
    model = domain.records.get(table)
    if model is None:
        return record
    try:
        return cast(Record, model.read(record))
    except (ToolError, TypeError) as error:
        raise InputError(f"{where}: initial_state: initialization_data: {table}: {error}") from None


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
