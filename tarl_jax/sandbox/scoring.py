"""What a benchmark would say of an episode: its parts, and the reward that rests on them.

τ²-bench (arXiv 2506.07982) judges five things, and multiplies those that a task's `reward_basis`
names; τ-bench (2406.12045) multiplies the first with the fourth.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tarl_jax.config import InputError
from tarl_jax.sandbox.domain import Domain
from tarl_jax.sandbox.verifier import verify
from tarl_jax.types import Call, GoldAction, Task

# What a task may rest its reward on -> the field of `Score`.
BASES = {
    "DB": "database",
    "ENV_ASSERTION": "environment",
    "ACTION": "actions",
    "COMMUNICATE": "communicate",
    "NL_ASSERTION": "assertions",
}
_TAU_BENCH = ("DB", "COMMUNICATE")
REQUESTORS = ("assistant", "user")


@dataclass(frozen=True)
class Score:
    """What `score` found. Each part is None where the task does not ask for it.

    database: the final state equals the one that the gold calls lead to.
    environment: the assertions on the environment hold.
    actions: every gold action was called.
    communicate: every required text was said by the agent.
    assertions: those that only a reader can judge hold; None also where nobody has judged them.
    reward: 1.0 if every part of the task's basis holds or is not asked for, 0.0 if one fails; None
      if that depends on assertions that nobody has judged, which is no pass.
    """

    database: bool | None
    environment: bool | None
    actions: bool | None
    communicate: bool | None
    assertions: bool | None
    reward: float | None


def score(
    domain: Domain,
    task: Task,
    calls: Iterable[Mapping[str, Any]],
    messages: Iterable[str] = (),
    assertions: bool | None = None,
) -> Score:
    """Plays calls from the task's start and judges them as the task's benchmark does.

    Args:
      calls: in order, each {"name", "kwargs"} and, where the user made it, "requestor": "user".
      messages: what the agent said to the user.
      assertions: a reader's verdict on `task.assertions`; None: nobody judged them.
    Raises InputError for a requestor that is not known, and for a task that does not start from the
    domain's own database.
    """
    if any((task.initial_state or {}).values()):
        raise InputError(f"{task.task_id}: initial_state: this domain cannot begin from it")
    state, made = domain.new_state(), []
    for call in calls:
        requestor = call.get("requestor", "assistant")
        if requestor not in REQUESTORS:
            raise InputError(f"requestor {requestor!r}: choose one of {', '.join(REQUESTORS)}")
        made.append(Call(call["name"], call["kwargs"]))
        if requestor == "assistant":  # these domains give the user no tools: a refusal
            domain.call(state, call["name"], call["kwargs"])
    gold = [(c.name, dict(c.kwargs)) for c in task.gold_calls]
    verdict = verify(domain, state, gold, task.outputs, messages)
    return score_of(task, verdict.success, verdict.outputs_found, made, assertions)


def score_of(
    task: Task, database: bool, communicate: bool, calls: Iterable[Call],
    assertions: bool | None = None,
) -> Score:  # fmt: skip
    """The score of an episode whose database and messages were judged already.

    Args:
      calls: all that were made, in any order.
    """
    made = list(calls)
    parts: dict[str, bool | None] = {
        "database": None if task.reward_basis and task.actions is None else database,
        "environment": None,
        "actions": all(any(_same(a, c) for c in made) for a in task.actions)
        if task.actions else None,
        "communicate": communicate if task.outputs else None,
        "assertions": assertions if task.assertions else None,
    }  # fmt: skip
    basis = [BASES[name] for name in task.reward_basis or _TAU_BENCH]
    reward: float | None = float(all(parts[name] is not False for name in basis))
    if reward and "assertions" in basis and task.assertions and assertions is None:
        reward = None
    return Score(**parts, reward=reward)


def _same(action: GoldAction, call: Call) -> bool:
    """Whether a call is the action: by the arguments that count, and by no one's account."""
    compared = call.kwargs if action.compare_args is None else action.compare_args
    sides = [{k: v for k, v in kwargs.items() if k in compared}
             for kwargs in (action.kwargs, call.kwargs)]
    return action.name == call.name and sides[0] == sides[1]
