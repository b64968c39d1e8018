"""What a language model that judges is asked: the rubric, and the episode as data.

Everything that user, tools, agent or task have written stands in one line of JSON, in which no
character can end a string or a line, between two marker lines. The marker is a hash of that JSON:
who writes in the episode cannot know it, for what it writes changes it, and the same episode always
makes the same request.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import Any

from tarl_jax.config.plain import dumps
from tarl_jax.types import Segment, Trajectory

_RUBRIC = Path(__file__).parent / "rubric.txt"
_SHOWN = 4000  # characters of a wrong answer that the model is shown again

Messages = list[dict[str, str]]


@lru_cache(maxsize=1)
def rubric() -> str:
    """The grades and what earns them; the same for every episode."""
    return _RUBRIC.read_text("utf-8")


def evidence(trajectory: Trajectory) -> dict[str, Any]:
    """What the judge may know of an episode."""
    task = trajectory.task
    return {
        "wanted": task.instruction,
        "expected_calls": [call.to_json() for call in task.gold_calls],
        "expected_statements": list(task.outputs),
        "database_changes": trajectory.diff,
        "differences_from_expected": trajectory.gold_diff,
        "ended": trajectory.stop_reason or "not yet",
        "dialogue": [_entry(segment) for segment in trajectory.segments],
    }


def request(trajectory: Trajectory, max_majors: int) -> Messages:
    """Asks for a grade of every turn; `answer.Grades` is the form of what should come back."""
    # ASCII alone: some other characters end a line too.
    data = dumps(evidence(trajectory))
    marker = f"======== {hashlib.sha256(data.encode()).hexdigest()[:32]} ========"
    count = len(trajectory.turns)
    limit = "only one of them" if max_majors == 1 else f"at most {max_majors} of them"
    asked = (f"Grade the agent's {count} turns, numbered 0 to {count - 1}: one entry for each."
             f" The score of {limit} may be -1.")
    content = f"The episode:\n{marker}\n{data}\n{marker}\n{asked}"
    return [{"role": "system", "content": rubric()}, {"role": "user", "content": content}]


def user_request(trajectory: Trajectory) -> Messages:
    """Asks what the user did wrong; `answer.UserFaults` is the form of what should come back."""
    data = dumps(evidence(trajectory))
    marker = f"======== {hashlib.sha256(data.encode()).hexdigest()[:32]} ========"
    content = f"The episode:\n{marker}\n{data}\n{marker}\nName the customer's faults."
    rubric_of_users = (_RUBRIC.parent / "user_rubric.txt").read_text("utf-8")
    return [{"role": "system", "content": rubric_of_users}, {"role": "user", "content": content}]


def outcomes_request(trajectory: Trajectory) -> Messages:
    """Asks whether the task's assertions hold; `answer.Outcomes` is the form of what should come
    back. What tau2-bench asks its reader, in other words, with the calls as well."""
    data = dumps({
        "conversation": [_entry(segment) for segment in trajectory.segments],
        "expectedOutcomes": list(trajectory.task.assertions),
    })
    marker = f"======== {hashlib.sha256(data.encode()).hexdigest()[:32]} ========"
    count = len(trajectory.task.assertions)
    content = (f"The episode:\n{marker}\n{data}\n{marker}\nSay of each of the {count} expected"
               " outcomes, in order, whether the agent met it.")
    rubric_of_outcomes = (_RUBRIC.parent / "outcome_rubric.txt").read_text("utf-8")
    return [{"role": "system", "content": rubric_of_outcomes}, {"role": "user", "content": content}]


def repair(asked: Messages, answer: str, problem: str) -> Messages:
    """Asks again, after an answer that could not be used."""
    return [
        *asked,
        {"role": "assistant", "content": answer[:_SHOWN]},
        {"role": "user", "content": f"This answer cannot be used: {problem}. Answer again, with the"
                                    " whole JSON object and nothing else."},
    ]


def _entry(segment: Segment) -> dict[str, Any]:
    if segment.role != "agent":
        more: dict[str, Any] = {"refused": True} if segment.info.get("error") else {}
        if "interruption" in segment.info:
            more["supervisor"] = segment.info["interruption"]
        if "user_calls" in segment.info:
            more["done_by_the_user_unseen_by_the_agent"] = segment.info["user_calls"]
        return {segment.role: segment.text, **more}
    if "malformed" in segment.info:
        wrote = segment.unheard or segment.text
        return {"turn": segment.turn, "agent": wrote, "malformed": segment.info["malformed"]}
    calls = [call.to_json() for call in segment.calls]
    if calls:
        return {"turn": segment.turn, **({"call": calls[0]} if len(calls) == 1
                                         else {"calls": calls})}
    return {"turn": segment.turn, "agent": segment.message}
