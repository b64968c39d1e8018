"""The rule judge: scores every turn of a finished episode, without a language model.

+1 right, 0 a minor issue, -1 a major deviation: an irreversible write that is wrong, or that the
user did not agree to; or wrong information given to the user (a refusal of what is allowed, a claim
that something is done which is not).
It knows the hidden script and the right calls, and reads the transcript only, so that saved
trajectories can be judged again. A write that the shop rejects changes nothing and is minor.

Every deviation is marked, also after the first; the reward decides how many of them cost.
"""

from __future__ import annotations

import dataclasses
import json

from tarl_jax.sandbox.script import Request, Script
from tarl_jax.types import Call, Segment, Trajectory

_IDENTIFY = ("find_user_id_by_email", "find_user_id_by_name_zip")


@dataclasses.dataclass(frozen=True)
class Judgement:
    """Per agent turn a score (-1, 0, +1) and a reason."""

    scores: list[int]
    notes: list[str]


def judge(trajectory: Trajectory) -> Judgement | None:
    """Scores each agent turn; None (abstain) where the task has no script to judge by."""
    if trajectory.task.script is None or trajectory.success is None:
        return None
    rules = _Rules(trajectory)
    answers = {s.turn: s for s in trajectory.segments if s.role in ("user", "tool")}
    marks = [rules.mark(turn, answers.get(turn.turn)) for turn in trajectory.turns]
    return Judgement([score for score, _ in marks], [note for _, note in marks])


class _Rules:
    """What has happened so far in the episode under judgement."""

    def __init__(self, trajectory: Trajectory):
        self.task = trajectory.task
        self.requests = Script.from_json(trajectory.task.script).requests
        self.open_calls = list(trajectory.task.gold_calls)
        self.identified = False
        self.asked = False
        self.read: set[str] = set()
        self.orders_read: set[str] = set()
        self.confirmed: set[int] = set()  # requests whose present wish the user confirmed
        self.dropped: set[int] = set()
        self.fulfilled: set[int] = set()
        self.spoiled: set[int] = set()  # requests with a wrong write

    def mark(self, turn: Segment, answer: Segment | None) -> tuple[int, str]:
        """(score, reason) of one turn; `answer` is what the user or the tool replied."""
        if "malformed" in turn.info or answer is None:
            return 0, "malformed turn"
        if turn.call is not None:
            return self._call(turn.call, answer)
        return self._message(turn.text, answer)

    def _call(self, call: Call, answer: Segment) -> tuple[int, str]:
        if answer.info["error"]:
            return 0, "the tool rejected the call"
        if answer.info["wrote"]:
            return self._write(call, answer.info["request"])
        if call.name == "transfer_to_human_agents":
            if self.open_calls:
                return -1, "hands over a customer it could serve"
            return 0, "a transfer that was not needed"
        key = json.dumps(call.to_json(), sort_keys=True)
        if key in self.read:
            return 0, "reads the same again"
        self.read.add(key)
        return self._read(call, answer)

    def _read(self, call: Call, answer: Segment) -> tuple[int, str]:
        request = self._request(answer.info["request"])
        if call.name in _IDENTIFY:
            first, self.identified = not self.identified, answer.text == self.task.user_id
            if first and self.identified:
                return 1, "identifies the user"
            return 0, "not the user, or known already"
        if call.name == "get_order_details":
            self.orders_read.add(call.kwargs["order_id"])
        wanted = {
            "get_order_details": request and call.kwargs.get("order_id") == request.order_id,
            "get_product_details": request and request.kind in ("exchange", "modify")
            and call.kwargs.get("product_id") == request.product_id,
            "get_user_details": request and request.kind == "payment"
            and call.kwargs.get("user_id") == self.task.user_id,
        }
        if wanted.get(call.name):
            return 1, "reads what the request needs"
        return 0, "a read that the request does not need"

    def _write(self, call: Call, index: int) -> tuple[int, str]:
        if call not in self.open_calls:
            self.spoiled.add(index)  # what follows from a wrong write is not a second deviation
            return -1, "a wrong write"
        self.open_calls.remove(call)
        owner = next(i for i, r in enumerate(self.requests) if r.gold == call)
        self.fulfilled.add(owner)
        if not self.identified:
            return -1, "a write for a user it did not identify"
        if owner not in self.confirmed or owner != index:
            return -1, "a write without the user's yes"
        return 1, "the right write, confirmed"

    def _message(self, text: str, answer: Segment) -> tuple[int, str]:
        intent, event = answer.info["intent"], answer.info["event"]
        index = answer.info["request"]
        request = self._request(index)
        if request is None:
            return 0, "there is nothing left to do"
        match intent:
            case "ask_email" | "ask_name":
                needed = not (self.identified or self.asked)
                self.asked = True
                return (1, "asks who the user is") if needed else (0, "asks what it knows")
            case "propose":
                return self._propose(request, index, event)
            case "deny":
                return self._deny(request, index)
            case "done":
                return self._done(request, index)
            case "leave":
                if index in self.dropped:
                    return 1, "leaves what the user dropped"
                if request.denial or index in self.fulfilled:
                    return 0, "unclear about what it did"
                return -1, "leaves a request that it could serve"
        return 0, "the user cannot tell what this means"

    def _propose(self, request: Request, index: int, event: str) -> tuple[int, str]:
        known = request.order_id in self.orders_read
        again = index in self.confirmed
        if event == "confirmed":
            self.confirmed.add(index)
        if event == "changed_mind" and request.then is None:
            self.dropped.add(index)
        if event not in ("confirmed", "changed_mind"):
            return 0, "proposes what the user did not ask for"
        if request.denial:
            return 0, "proposes what the policy forbids"
        if again:
            return 0, "asks again for a yes it has"
        if not known:
            return 0, "proposes without looking at the order"
        return 1, "lists the action and asks for a yes"

    def _deny(self, request: Request, index: int) -> tuple[int, str]:
        if request.denial:
            if request.denial == "reason" or request.order_id in self.orders_read:
                return 1, "refuses what the policy forbids"
            return 0, "refuses without looking"
        if index in self.dropped:
            return 0, "refuses what the user dropped"
        return -1, "refuses what the policy allows"

    def _done(self, request: Request, index: int) -> tuple[int, str]:
        if index in self.fulfilled:
            return 1, "reports what it did"
        if index in self.dropped or index in self.spoiled:
            return 0, "unclear about what it did"
        return -1, "claims to have done what it did not"

    def _request(self, index: int) -> Request | None:
        return self.requests[index] if index < len(self.requests) else None


