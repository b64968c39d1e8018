"""τ²-bench's `results.json` (version 1.0.1): evaluations written so that its own commands grade
them again, and its files read as episodes that the viewer shows.

A file holds {"timestamp", "info", "tasks", "simulations"}; a simulation's messages are the
greeting, then user, agent and tools in turn. A folder beside it, `simulations/`, may hold the
simulations, a file each.
"""

from __future__ import annotations

import collections
import dataclasses
import datetime
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tarl_jax import __version__
from tarl_jax.config import InputError, RunConfig
from tarl_jax.config.plain import dumps, read_json
from tarl_jax.parallel import files
from tarl_jax.runs.metrics import RESULTS_FILE
from tarl_jax.sandbox.domain import Database, Domain
from tarl_jax.sandbox.published import DOMAINS, instruction_of
from tarl_jax.types import Call, GoldAction, Segment, Task, Trajectory

_SIMULATIONS = "simulations"
# How an episode of ours ended -> the benchmark's word, and back.
_ENDS = {
    "user_stop": "user_stop",
    "answered": "agent_stop",
    "transfer": "agent_stop",
    "max_turns": "max_steps",
    "max_messages": "max_steps",
    "max_errors": "too_many_errors",
    "max_tokens": "context_window_exceeded",
    "max_seconds": "timeout",
    "malformed": "agent_error",
    "infrastructure_error": "infrastructure_error",
}
_ENDED = {
    "user_stop": "user_stop",
    "agent_stop": "transfer",
    "max_steps": "max_messages",
    "too_many_errors": "max_errors",
    "context_window_exceeded": "max_tokens",
    "timeout": "max_seconds",
    "agent_error": "malformed",
}
_BROKEN = ("infrastructure_error", "user_error", "unexpected_error")  # not the agent's doing
_LONGEST, _ERRORS = 200, 10  # the benchmark's own limits


# ---- writing ---------------------------------------------------------------------------------


def write_results(
    path: Path, trajectories: Sequence[Trajectory], records: Mapping[str, Mapping[str, Any]],
    rewards: Sequence[float | None], domain: Domain, config: RunConfig,
) -> None:
    """Writes the file, whole or not at all. Raises WriteError.

    Args:
      trajectories: episodes of τ²-bench's tasks; its trials are those of a task in their order.
      records: the tasks as the benchmark writes them, by `Task.task_id`.
      rewards: of each episode, by the task's `reward_basis`; None: not judged, which is no pass.
    """
    trials: collections.Counter[str] = collections.Counter()
    simulations = []
    for t, reward in zip(trajectories, rewards, strict=True):
        name = t.task.task_id
        simulations.append(_simulation(t, str(records[name]["id"]), trials[name], reward))
        trials[name] += 1
    with files.writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    whole = {
        "timestamp": _now(),
        "info": _info(domain, config, max(trials.values(), default=0)),
        "tasks": [records[name] for name in trials],
        "simulations": simulations,
    }
    files.replace(path, dumps(whole) + "\n")


def _info(domain: Domain, config: RunConfig, trials: int) -> dict[str, Any]:
    model, user = config.model.pretrained or config.name, config.user
    scripted = user.kind != "llm"
    rollout = config.rollout
    return {
        "git_commit": f"tarl_jax {__version__}",
        "num_trials": trials,
        "max_steps": _LONGEST if rollout.max_messages < 0 else rollout.max_messages,
        "max_errors": _ERRORS if rollout.max_errors < 0 else rollout.max_errors,
        "user_info": {
            "implementation": f"tarl_jax {user.kind if scripted else user.strategy}",
            "llm": None if scripted else user.llm.model,
            "llm_args": None if scripted else {"temperature": user.llm.temperature},
        },
        "agent_info": {
            "implementation": "tarl_jax",
            "llm": Path(model).name,
            "llm_args": {"temperature": config.eval.temperature},
        },
        "environment_info": {"domain_name": domain.name, "policy": domain.policy},
        "seed": config.eval.seed,
    }


def _simulation(t: Trajectory, number: str, trial: int, reward: float | None) -> dict[str, Any]:
    seconds = float(t.seconds.get("episode", 0.0))
    end = datetime.datetime.now()
    begin = end - datetime.timedelta(seconds=seconds)
    note = {"note": "hangs on assertions that nobody has judged"} if reward is None else None
    return {
        "id": hashlib.sha256(f"{t.task.task_id}/{trial}/{t.seed}".encode()).hexdigest()[:32],
        "task_id": number,
        "timestamp": end.isoformat(),
        "start_time": begin.isoformat(),
        "end_time": end.isoformat(),
        "duration": seconds,
        "termination_reason": _ENDS[t.stop_reason],
        "agent_cost": None,
        "user_cost": None,
        "reward_info": {
            "reward": reward or 0.0,
            "nl_assertions": [
                {"nl_assertion": text, "met": met, "justification": ""}
                for text, met in zip(t.task.assertions, t.assertions_met, strict=True)
            ] if t.assertions_met else None,
            "reward_basis": list(t.task.reward_basis) or None,
            "info": note,
        },
        "messages": list(_messages(t)),
        "trial": trial,
        "seed": t.seed,
        "info": {"tarl_jax_stop_reason": t.stop_reason},
    }


def _messages(t: Trajectory) -> Iterator[dict[str, Any]]:
    """The benchmark's messages. A turn that could not be read is a message, for no tool was asked;
    what the agent was answered to it is the system's word."""
    asked: list[str] = []  # calls that wait for their answers
    for place, segment in enumerate(s for s in t.segments if s.role != "system"):
        text = segment.text
        for number, made in enumerate(segment.info.get("user_calls", ())):
            yield from _call_of_user(made, f"user_call_{place}_{number}")
        if segment.role == "tool" and not asked:
            yield {"role": "system", "content": text, "turn_idx": place}
        elif segment.role == "tool":
            yield {
                "role": "tool", "id": asked.pop(0), "content": text, "requestor": "assistant",
                "error": bool(segment.info.get("error")), "turn_idx": place,
            }
        elif segment.calls:
            asked = [f"call_{place}" + f"_{n}" * (n > 0) for n in range(len(segment.calls))]
            calls = [{"id": call_id, "requestor": "assistant", **call.to_json()}
                     for call_id, call in zip(asked, segment.calls, strict=True)]
            yield {"role": "assistant", "content": None, "tool_calls": calls, "turn_idx": place}
        elif segment.role == "user":
            if text.strip():  # a user that failed has said nothing
                yield {"role": "user", "content": text, "turn_idx": place}
        else:
            said = segment.message if segment.role == "agent" else text
            # What nobody heard must not count as told.
            unheard = {} if said.strip() else {"raw_data": {"unheard": segment.unheard}}
            yield {"role": "assistant", "content": said.strip() or "(no message)",
                   "turn_idx": place, **unheard}


def _call_of_user(made: Mapping[str, Any], call_id: str) -> Iterator[dict[str, Any]]:
    """A call that a user with tools made before its message, and its answer."""
    call = {"id": call_id, "name": made["name"], "arguments": made["kwargs"], "requestor": "user"}
    yield {"role": "user", "content": None, "tool_calls": [call]}
    yield {
        "role": "tool", "id": call_id, "content": made.get("output", ""), "requestor": "user",
        "error": bool(made.get("error")),
    }


def _now() -> str:
    return datetime.datetime.now().isoformat()


# ---- reading ---------------------------------------------------------------------------------


def read_results(path: str | os.PathLike[str]) -> list[Trajectory]:
    """The episodes of a file or folder of results, without tokens: what `view` shows.

    `success` is whether the reward is 1; None where the infrastructure or the user failed.
    Raises InputError naming file and place for what is no such file, and for spoken simulations.
    """
    path = Path(path)
    path = path / RESULTS_FILE if path.is_dir() else path
    data = read_json(path)
    try:
        domain, policy = data["info"]["environment_info"]["domain_name"], _policy(data)
        records = {str(record["id"]): record for record in data["tasks"]}
        simulations = [*(data.get("simulations") or ()), *_beside(path)]
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: is no results.json of τ²-bench ({error!r})") from None
    writes = _writes(domain)
    found = []
    for place, simulation in enumerate(simulations):
        try:
            record = records[str(simulation["task_id"])]
            task = _task(record, domain, writes)
            found.append(_trajectory(simulation, task, policy))
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise InputError(f"{path}: simulation {place}: {error!r}") from error
    return found


def _beside(path: Path) -> Iterator[Any]:
    for file in sorted((path.parent / _SIMULATIONS).glob("*.json")):
        yield read_json(file)


def _policy(data: Mapping[str, Any]) -> str:
    return str(data["info"]["environment_info"].get("policy") or "")


def _writes(domain: str) -> set[str] | None:
    """The tools that write; None of a domain that is not known here."""
    source = DOMAINS.get(domain)
    if source is None:
        return None
    empty: Database = collections.defaultdict(dict)
    return {tool.name for tool in source.make["tau2"](empty, "").tools.values() if tool.write}


def _task(record: Mapping[str, Any], domain: str, writes: set[str] | None) -> Task:
    criteria = record.get("evaluation_criteria") or {}
    actions = tuple(
        GoldAction(
            a["name"], a.get("arguments") or {},
            None if a.get("compare_args") is None else tuple(a["compare_args"]),
            a.get("requestor") or "assistant",
        )
        for a in criteria.get("actions") or ()
    )
    gold = tuple(
        Call(a.name, a.kwargs) for a in actions
        if a.requestor == "assistant" and (writes is None or a.name in writes)
    )
    known = next((str(a.kwargs["user_id"]) for a in actions if "user_id" in a.kwargs), "")
    return Task(
        task_id=f"tau2/{domain}/{record['id']}", user_id=known,
        instruction=instruction_of(record["user_scenario"]), gold_calls=gold,
        outputs=tuple(criteria.get("communicate_info") or ()), split="held_out", source="tau2",
        script=None, expert_turns=1, assertions=tuple(criteria.get("nl_assertions") or ()),
        actions=actions, reward_basis=tuple(criteria.get("reward_basis") or ()),
        initial_state=record.get("initial_state"),
    )


def _trajectory(simulation: Mapping[str, Any], task: Task, policy: str) -> Trajectory:
    if simulation.get("messages") is None and simulation.get("ticks") is not None:
        raise ValueError("is spoken: simulations in writing alone are read")
    judged = simulation.get("reward_info") or {}
    told = judged.get("communicate_checks") or ()
    reason = str(simulation["termination_reason"])
    broken = reason in _BROKEN
    own = (simulation.get("info") or {}).get("tarl_jax_stop_reason")
    ended = own if own in _ENDS else _ENDED.get(reason, "infrastructure_error")
    return Trajectory(
        task=task,
        seed=int(simulation.get("seed") or 0),
        segments=[Segment.forced("system", [], -1, policy), *_segments(simulation["messages"])],
        stop_reason=ended,
        success=None if broken else judged.get("reward") == 1,
        outputs_found=all(check["met"] for check in told),
        seconds={"episode": float(simulation.get("duration") or 0.0)},
    )


def _segments(messages: Sequence[Mapping[str, Any]]) -> Iterator[Segment]:
    """The dialogue as segments without tokens. Several calls in one message are turns of their
    own, each with its answer behind it; the agent's words before the user's are its greeting. A
    user's calls are facts of its next message ("user_calls")."""
    flat = [part for m in messages for part in m.get("tool_messages") or (m,)]
    turn, place, heard = -1, 0, False
    by_user: list[dict[str, Any]] = []
    while place < len(flat):
        message = flat[place]
        place += 1
        role, text = message["role"], message.get("content") or ""
        if role in ("tool", "system"):  # what answers no call
            yield Segment.forced("tool", [], turn, text, error=True)
            continue
        author = "agent" if role == "assistant" else "user"
        heard |= author == "user"
        calls = message.get("tool_calls") or ()
        if not calls and not heard:
            yield Segment.forced("greeting", [], -1, text)
        elif not calls:
            turn += author == "agent"
            facts = {"user_calls": by_user} if by_user else {}
            by_user = []
            said = Segment.forced(author, [], turn, text, **facts)
            yield dataclasses.replace(said, message=text if author == "agent" else "")
        for call in calls:
            answer: Mapping[str, Any] = {}
            if place < len(flat) and flat[place]["role"] == "tool":
                answer = flat[place]
                place += 1
            output, error = answer.get("content") or "", bool(answer.get("error"))
            made = Call(call["name"], call.get("arguments") or {})
            if author == "user":
                by_user.append({"name": made.name, "kwargs": dict(made.kwargs), "output": output,
                                "error": error})
                continue
            turn += 1
            said = Segment.forced("agent", [], turn, text)
            yield dataclasses.replace(said, calls=[made], unheard=text)
            if answer:
                yield Segment.forced("tool", [], turn, output, error=error)
    if by_user:
        yield Segment.forced("user", [], turn, "", user_calls=by_user)
