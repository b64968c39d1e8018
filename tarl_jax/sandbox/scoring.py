"""What a benchmark would say of an episode: its parts, and the reward that rests on them.

τ²-bench (arXiv 2506.07982) judges five things, and multiplies those that a task's `reward_basis`
names; τ-bench (2406.12045) multiplies the first with the fourth.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

from tarl_jax.config import InputError
from tarl_jax.sandbox.domain import Domain, State
from tarl_jax.sandbox.dual_control import SIDES, Side
from tarl_jax.sandbox.starts import holds, perform, start_of
from tarl_jax.sandbox.verifier import Verdict, fulfilled, unsaid, verify
from tarl_jax.types import Call, GoldAction, Segment, Task

# What a task may rest its reward on -> the field of `Score`.
BASES = {
    "DB": "database",
    "ENV_ASSERTION": "environment",
    "ACTION": "actions",
    "COMMUNICATE": "communicate",
    "NL_ASSERTION": "assertions",
}
_TAU_BENCH = ("DB", "COMMUNICATE")
_HAND_OVER = "transfer_to_human_agents"


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
    Raises InputError for a requestor that is not known, and for a start that cannot be made.
    """
    state, made = start_of(domain, task.initial_state, task.task_id), []
    for call in calls:
        requestor = call.get("requestor", "assistant")
        if requestor not in SIDES:
            raise InputError(f"requestor {requestor!r}: choose one of {', '.join(SIDES)}")
        made.append(Call(call["name"], call["kwargs"]))
        domain.call(state, call["name"], call["kwargs"], requestor)
    if domain.user:
        database = domain.same(state, _gold_state(domain, task))
    else:
        gold = [(c.name, dict(c.kwargs)) for c in task.gold_calls]
        database = verify(domain, state, gold, start=task.initial_state).success
    environment = all(holds(domain, state, check) for check in task.checks)
    said = not unsaid(task.outputs, messages)
    return score_of(task, database, said, made, assertions, environment)


def score_of(
    task: Task, database: bool, communicate: bool, calls: Iterable[Call],
    assertions: bool | None = None, environment: bool | None = None,
) -> Score:  # fmt: skip
    """The score of an episode whose databases and messages were judged already.

    Args:
      calls: all that were made, by agent and user, in any order.
    """
    made = list(calls)
    parts: dict[str, bool | None] = {
        "database": None if task.reward_basis and task.actions is None else database,
        "environment": environment if task.checks else None,
        "actions": _all_made(task, made) if task.actions else None,
        "communicate": communicate if task.outputs else None,
        "assertions": assertions if task.assertions else None,
    }
    basis = [BASES[name] for name in basis_of(task)]
    reward: float | None = float(all(parts[name] is not False for name in basis))
    if reward and "assertions" in basis and task.assertions and assertions is None:
        reward = None
    return Score(**parts, reward=reward)


def basis_of(task: Task) -> tuple[str, ...]:
    """What the task's reward rests on; where no benchmark says, on its checks and a hand-over that
    its actions have, or else as τ-bench's."""
    if task.reward_basis or not task.checks:
        return task.reward_basis or _TAU_BENCH
    hands_over = any(action.name == _HAND_OVER for action in task.actions or ())
    return ("ENV_ASSERTION", "ACTION") if hands_over else ("ENV_ASSERTION",)


def verdict_on(
    domain: Domain, task: Task, state: State, calls: Iterable[Call], messages: Iterable[str]
) -> Verdict:
    """What an episode that ended in `state` is trained on: did it do what its task asked for?

    Of a task with checks: whether they hold and, where its reward rests on them, its actions were
    called; `diff` names what is missing. Of any other, what `verify` says, and where the task has a
    `reward_basis`, whether all of it holds but for assertions, which only a reader can judge.

    Args:
      calls: of agent and user; messages: the agent's.
    """
    if not task.checks:
        gold = [(call.name, dict(call.kwargs)) for call in task.gold_calls]
        verdict = verify(domain, state, gold, task.outputs, messages, task.initial_state)
        return _by_basis(task, verdict, list(calls)) if task.reward_basis else verdict
    open_ones = [c for c in task.checks if not holds(domain, state, c)]
    diff = [f"{c.requestor} {c.name} {dict(c.kwargs)}: not {c.expected}" for c in open_ones]
    if "ACTION" in basis_of(task) and not _all_made(task, list(calls)):
        diff.append("actions: not all were called")
    missing = unsaid(task.outputs, messages)
    return Verdict(not diff, not missing, missing, tuple(diff))


def _by_basis(task: Task, verdict: Verdict, calls: list[Call]) -> Verdict:
    found = score_of(task, verdict.success, verdict.outputs_found, calls, assertions=True)
    more: list[str] = []
    if "COMMUNICATE" in task.reward_basis:
        more += [f"not said: {text}" for text in verdict.missing_outputs]
    if "ACTION" in task.reward_basis and found.actions is False:
        more.append("actions: not all were called")
    return replace(verdict, success=found.reward == 1, diff=(*verdict.diff, *more))


def needs_reader(task: Task) -> bool:
    """Whether the reward hangs on assertions, which no rule decides."""
    return bool(task.assertions) and "NL_ASSERTION" in task.reward_basis


def calls_of(segments: Iterable[Segment]) -> list[Call]:
    """All calls of an episode: the agent's, and those that users with tools made ("user_calls")."""
    made: list[Call] = []
    for segment in segments:
        made += segment.calls
        made += (Call(c["name"], c["kwargs"]) for c in segment.info.get("user_calls", ()))
    return made


def done(domain: Domain, task: Task, state: State) -> list[int]:
    """Which goals of the task the state shows done: its checks, or else its gold calls."""
    if task.checks:
        return [index for index, c in enumerate(task.checks) if holds(domain, state, c)]
    gold = [(call.name, dict(call.kwargs)) for call in task.gold_calls]
    return list(fulfilled(domain, state, gold, task.initial_state))


def _gold_state(domain: Domain, task: Task) -> State:
    """Where the solution leads. As the benchmark's, it brings the two halves into step before its
    calls, and not after: where a call of one side changes the other, no episode gets there."""
    state = start_of(domain, task.initial_state, task.task_id)
    for action in task.actions or ():
        # What fails here fails there without a word.
        with contextlib.suppress(Exception):
            perform(domain, state, action.name, action.kwargs, cast(Side, action.requestor), False)
    return state


def _all_made(task: Task, calls: list[Call]) -> bool:
    return all(any(_same(action, call) for call in calls) for action in task.actions or ())


def _same(action: GoldAction, call: Call) -> bool:
    """Whether a call is the action: by the arguments that count, and by no one's account."""
    compared = call.kwargs if action.compare_args is None else action.compare_args
    sides = [{k: v for k, v in kwargs.items() if k in compared}
             for kwargs in (action.kwargs, call.kwargs)]
    return action.name == call.name and sides[0] == sides[1]
