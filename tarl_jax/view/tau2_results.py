"""tau2-bench's results files as episodes: what its harness writes to `results.json`.

A file holds "tasks", and "simulations" with "messages", "reward_info" and "termination_reason".
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from tarl_jax.config import InputError

Json = dict[str, Any]


def require(data: Any, path: Path) -> None:
    """Raises InputError where the file is none of tau2-bench's."""
    simulations = data.get("simulations") if isinstance(data, dict) else None
    whole = isinstance(simulations, list) and all(
        isinstance(s, dict) and isinstance(s.get("messages"), list) and "task_id" in s
        for s in simulations
    )
    if not whole:
        raise InputError(f"{path}: is no results file of tau2-bench (simulations, each with a"
                         " task_id and messages)")


def facts(data: Json) -> Json:
    """What the file says of its harness, flat: agent, user, domain, trials."""
    info = data.get("info") or {}
    out = {"num_trials": info.get("num_trials"), "seed": info.get("seed")}
    for who in ("agent_info", "user_info"):
        for name in ("implementation", "llm"):
            out[f"{who.removesuffix('_info')}.{name}"] = (info.get(who) or {}).get(name)
    out["domain"] = (info.get("environment_info") or {}).get("domain_name")
    return {key: value for key, value in out.items() if value is not None}


def pass_rates(data: Json) -> dict[str, float]:
    """pass^k of all tasks that were tried at least k times, k up to 4."""
    by_task: dict[str, list[bool]] = {}
    for simulation in data["simulations"]:
        by_task.setdefault(str(simulation["task_id"]), []).append(_success(simulation) is True)
    trials = min(map(len, by_task.values()), default=0)
    rates = {}
    for k in range(1, min(trials, 4) + 1):
        each = [math.comb(sum(of), k) / math.comb(len(of), k) for of in by_task.values()]
        rates[f"eval/pass^{k}"] = sum(each) / len(each)
    return {**rates, "eval/tasks": float(len(by_task))}


def episodes(data: Json) -> list[Json]:
    """The simulations in the form of `Trajectory.to_json_line`, the trials of a task together."""
    tasks = {str(task.get("id")): task for task in data.get("tasks") or []}
    order = sorted(data["simulations"], key=lambda s: (_natural(s["task_id"]), s.get("trial") or 0))
    return [_episode(s, tasks.get(str(s["task_id"]), {})) for s in order]


def _natural(task_id: Any) -> tuple[int, str]:
    text = str(task_id)
    return (int(text) if text.isdecimal() else 10**9, text)


def _success(simulation: Json) -> bool | None:
    reward = (simulation.get("reward_info") or {}).get("reward")
    return None if reward is None else reward >= 1 - 1e-6


def _episode(simulation: Json, task: Json) -> Json:
    judged = simulation.get("reward_info") or {}
    criteria = task.get("evaluation_criteria") or {}
    segments, turn = [], -1
    for message in simulation["messages"]:
        for one in message.get("tool_messages") or [message]:  # several answers in one
            if one.get("role") == "assistant":
                turn += 1
            segments.append(_segment(one, turn))
    return {
        "task": {
            "task_id": str(simulation["task_id"]),
            "instruction": _text(task.get("user_scenario") or ""),
            "gold_calls": [
                {"name": a.get("name"), "arguments": a.get("arguments") or {}}
                for a in criteria.get("actions") or []
            ],
            "outputs": criteria.get("communicate_info") or [],
            "assertions": criteria.get("nl_assertions") or [],
        },
        "seed": simulation.get("seed"),
        "segments": segments,
        "stop_reason": str(simulation.get("termination_reason") or "unknown"),
        "success": _success(simulation),
        "reward": judged.get("reward"),
        "reward_parts": judged.get("reward_breakdown") or {},
        "facts": _checks(judged) | {
            name: simulation[name] for name in ("trial", "duration", "agent_cost", "user_cost")
            if simulation.get(name) is not None
        },
    }


def _segment(message: Json, turn: int) -> Json:
    role = {"assistant": "agent"}.get(message.get("role", ""), message.get("role", ""))
    info = {"error": True} if message.get("error") else {}
    if role == "tool" and message.get("requestor") == "user":
        info["of"] = "the user's device"
    return {
        "role": role, "turn": turn, "text": _text(message.get("content") or ""), "info": info,
        "message": _text(message.get("content") or ""),
        "calls": [
            {"name": call.get("name"), "arguments": call.get("arguments") or {}}
            for call in message.get("tool_calls") or []
        ],
    }


def _checks(judged: Json) -> Json:
    """What the benchmark checked, one line each."""
    found: Json = {}
    if judged.get("db_check"):
        found["database"] = "as it should be" if judged["db_check"].get("db_match") else "wrong"
    for check in judged.get("action_checks") or []:
        action = check.get("action") or {}
        name = f"action {action.get('name')} {_text(action.get('arguments') or {})}"
        found[name] = "made" if check.get("action_match") else "not made"
    for check in judged.get("communicate_checks") or []:
        found[f"says {check.get('info')}"] = "yes" if check.get("met") else "no"
    for check in judged.get("nl_assertions") or []:
        found[str(check.get("nl_assertion"))] = "holds" if check.get("met") else "does not hold"
    for check in judged.get("env_assertions") or []:
        name = _text((check.get("env_assertion") or {}).get("func_name") or "assertion")
        found[name] = "holds" if check.get("met") else "does not hold"
    return found


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, indent=1)
