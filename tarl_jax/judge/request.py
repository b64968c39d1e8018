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

_FOLDER = Path(__file__).parent
_SHOWN = 4000  # characters of a wrong answer that the model is shown again

Messages = list[dict[str, str]]


@lru_cache
def rubric(name: str = "rubric.txt") -> str:
    """What a judge is told, the same for every episode; the default: grades and what earns them."""
    return (_FOLDER / name).read_text("utf-8")


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
    count = len(trajectory.turns)
    limit = "only one of them" if max_majors == 1 else f"at most {max_majors} of them"
    return _about(evidence(trajectory), rubric(), (
        f"Grade the agent's {count} turns, numbered 0 to {count - 1}: one entry for each."
        f" The score of {limit} may be -1."
    ))


def user_request(trajectory: Trajectory) -> Messages:
    """Asks what the user did wrong; `answer.UserFaults` is the form of what should come back."""
    return _about(evidence(trajectory), rubric("user_rubric.txt"), "Name the customer's faults.")


def outcomes_request(trajectory: Trajectory) -> Messages:
    """Asks whether the task's assertions hold; `answer.Outcomes` is the form of what should come
    back. What tau2-bench asks its reader, in other words, with the calls as well."""
    expected = trajectory.task.assertions
    data = {
        "conversation": [_entry(segment) for segment in trajectory.segments],
        "expectedOutcomes": list(expected),
    }
    return _about(data, rubric("outcome_rubric.txt"), (
        f"Say of each of the {len(expected)} expected outcomes, in order, whether the agent met it."
    ))


def _about(data: dict[str, Any], system: str, asked: str) -> Messages:
    """The question, behind what it is about."""
    told = dumps(data)  # ASCII alone: some other characters end a line too
    marker = f"======== {hashlib.sha256(told.encode()).hexdigest()[:32]} ========"
    content = f"The episode:\n{marker}\n{told}\n{marker}\n{asked}"
    return [{"role": "system", "content": system}, {"role": "user", "content": content}]


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
