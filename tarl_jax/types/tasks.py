"""Tasks and the calls that solve them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

TASK_KINDS = ("tool", "maths")


@dataclasses.dataclass(frozen=True)
class Call:
    """One tool call: the tool's name and its keyword arguments."""

    name: str
    kwargs: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "arguments": dict(self.kwargs)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Call:
        return cls(data["name"], dict(data["arguments"]))


@dataclasses.dataclass(frozen=True)
class GoldAction:
    """A call of the solution that τ²-bench gives for a task, reading or writing.

    compare_args: the arguments by which a call is the same, if empty by name alone; None: all that
      the agent's call has. requestor: who is to make it, "assistant" or "user".
    """

    name: str
    kwargs: Mapping[str, Any]
    compare_args: tuple[str, ...] | None = None
    requestor: str = "assistant"

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> GoldAction:
        compared = data["compare_args"]
        return cls(**{**data, "compare_args": None if compared is None else tuple(compared)})


@dataclasses.dataclass(frozen=True)
class Check:
    """An assertion that τ²-bench makes on the environment at a task's end.

    name, kwargs: of the function that says whether it is so; requestor: on whose half it is;
    expected: what it should say.
    """

    name: str
    kwargs: Mapping[str, Any]
    requestor: str = "user"
    expected: bool = True


@dataclasses.dataclass(frozen=True)
class Task:
    """What a user wants, and the calls that would make it true.

    Attributes:
      task_id: unique within its source.
      user_id: whose account the task is about.
      instruction: the user's hidden text; the policy never sees it.
      gold_calls: the write calls of a right solution, in order.
      outputs: strings that some agent message should contain (reported, not trained on).
      split: "train" or "held_out".
      source: where the task comes from, e.g. "shop".
      script: what a scripted user needs (JSON-like), or None if only an LLM can play the user.
      expert_turns: agent turns that a faultless clerk takes; a constant of the task.
      assertions: statements about the dialogue that no rule can judge (reported, not trained on).
      kind: one of TASK_KINDS. A "maths" task is a problem (`instruction`) that one turn answers;
        its right answer is the only one of `outputs`.
      persona: the user's manner of speaking, one of `sandbox.phrases.PERSONAS`; empty: plain.
      difficulty: how hard the task is (`sandbox.tasks.rated`); 0 where nobody has said.
      actions: of a τ²-bench task: all calls of its solution; None where it gives none.
      reward_basis: of a τ²-bench task: what its reward rests on, of `sandbox.scoring.BASES`.
      initial_state: of a τ²-bench task: how its databases differ from the domain's at the start, as
        the benchmark writes it; None: not at all.
      checks: of a τ²-bench task: what must hold of the environment at the end. Where there are any
        they are the task's success, and not the database.
    """

    task_id: str
    user_id: str
    instruction: str
    gold_calls: tuple[Call, ...]
    outputs: tuple[str, ...]
    split: str
    source: str
    script: Mapping[str, Any] | None
    expert_turns: int
    assertions: tuple[str, ...] = ()
    kind: str = "tool"
    persona: str = ""
    difficulty: int = 0
    actions: tuple[GoldAction, ...] | None = None
    reward_basis: tuple[str, ...] = ()
    initial_state: Mapping[str, Any] | None = None
    checks: tuple[Check, ...] = ()

    def to_json(self) -> dict[str, Any]:
        data = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        data["gold_calls"] = [call.to_json() for call in self.gold_calls]
        data["outputs"] = list(self.outputs)
        data["assertions"] = list(self.assertions)
        data["reward_basis"] = list(self.reward_basis)
        if self.actions is not None:
            data["actions"] = [dataclasses.asdict(action) for action in self.actions]
        data["checks"] = [dataclasses.asdict(check) for check in self.checks]
        if not self.checks:
            del data["checks"]
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Task:
        # Records from before there were these have none.
        data = {"kind": "tool", "persona": "", "difficulty": 0, "actions": None,
                "reward_basis": [], "initial_state": None, "checks": [], **data}
        known = {f.name for f in dataclasses.fields(cls)}
        if set(data) != known:
            missing, surplus = sorted(known - set(data)), sorted(set(data) - known)
            raise ValueError(f"task record: missing fields {missing}, unknown fields {surplus}")
        if data["kind"] not in TASK_KINDS:
            raise ValueError(f"task record: kind {data['kind']!r}: choose one of {TASK_KINDS}")
        return cls(
            **{
                **data,
                "gold_calls": tuple(Call.from_json(c) for c in data["gold_calls"]),
                "outputs": tuple(data["outputs"]),
                "assertions": tuple(data["assertions"]),
                "reward_basis": tuple(data["reward_basis"]),
                "actions": None if (actions := data["actions"]) is None
                else tuple(map(GoldAction.from_json, actions)),
                "checks": tuple(Check(**check) for check in data["checks"]),
            }
        )
