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
import re
from typing import Any

from tarl_jax.sandbox.phrases import refusal_ground
from tarl_jax.sandbox.script import READS, Request, Script, right_answer
from tarl_jax.sandbox.shop import STATUS_WEIGHTS, named_in
from tarl_jax.types import CUT_OFF, Call, Segment, Trajectory

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
    script = Script.from_json(trajectory.task.script)
    if [r.gold for r in script.requests if r.gold] != list(trajectory.task.gold_calls):
        return None  # the script does not tell what was right
    rules = _Rules(trajectory, script)
    answers = {s.turn: s for s in trajectory.segments if s.role in ("user", "tool")}
    try:
        marks = [rules.mark(turn, answers.get(turn.turn)) for turn in trajectory.turns]
    except KeyError:  # answers without a scripted user's facts
        return None
    if trajectory.stop_reason in CUT_OFF and rules.open_calls and marks:
        marks[-1] = (-1, "runs out of turns with a request unserved")
    return Judgement([score for score, _ in marks], [note for _, note in marks])


class _Rules:
    """What has happened so far in the episode under judgement."""

    def __init__(self, trajectory: Trajectory, script: Script):
        self.task = trajectory.task
        self.requests = script.requests
        self.open_calls = list(trajectory.task.gold_calls)
        self.identified = False
        self.asked = script.eager  # who says who it is need not be asked
        self.read: set[str] = set()
        self.statuses: dict[str, str] = {}  # of the orders that were read
        self.orders: dict[str, dict[str, Any]] = {}  # those orders, as they were read
        self.products_read: set[str] = set()
        self.user_read = False
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
            asked = (i for i, r in enumerate(self.requests) if r.kind in READS)
            if self.open_calls or not all(map(self._settled, asked)):
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
            found = answer.text == self.task.user_id
            first = found and not self.identified
            self.identified |= found
            return (1, "identifies the user") if first else (0, "not the user, or known already")
        needed = False
        if call.name == "get_order_details":
            order_id = call.kwargs["order_id"]
            order = json.loads(answer.text)
            self.statuses[order_id] = order["status"]
            self.orders[order_id] = order
            needed = request is not None and order_id == request.order_id
        elif call.name == "get_product_details":
            product_id = call.kwargs["product_id"]
            self.products_read.add(product_id)
            needed = self._is_open(request, "exchange", "modify", product_id=product_id)
        elif call.name == "get_user_details":
            own = call.kwargs["user_id"] == self.task.user_id
            self.user_read |= own
            needed = own and self._is_open(request, "payment")
        if needed and self.identified:
            return 1, "reads what the request needs"
        return 0, "a read that the request does not need, or before it knows who asks"

    def _is_open(self, request: Request | None, *kinds: str, product_id: str = "") -> bool:
        """Whether a look at more than the order can matter to the request."""
        return (
            request is not None
            and request.kind in kinds
            and request.denial not in ("status", "reason")
            and product_id in ("", request.product_id)
        )

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
        unserved = [] if self._settled(index) else [request]
        unserved += self.requests[index + 1 :]
        if event == "gave_up" and any(
            r.gold in self.open_calls or r.kind in READS for r in unserved
        ):
            return -1, "lets the user give up on a request that it could serve"
        match intent:
            case "ask_email" | "ask_name":
                needed = not (self.identified or self.asked)
                self.asked = True
                return (1, "asks who the user is") if needed else (0, "asks what it knows")
            case "propose":
                return self._propose(request, index, event)
            case "deny":
                return self._deny(request, index, text)
            case "done":
                return self._done(request, index)
            case "leave":
                if index in self.dropped:
                    return 1, "leaves what the user dropped"
                if request.denial or self._settled(index):
                    return 0, "unclear about what it did"
                return -1, "leaves a request that it could serve"
            case "answer" if request.kind in READS:
                return self._answer(request, index, text)
        return 0, "the user cannot tell what this means"

    def _propose(self, request: Request, index: int, event: str) -> tuple[int, str]:
        known = request.order_id in self.statuses and self.identified
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
            return 0, "proposes before it knows the user and the order"
        return 1, "lists the action and asks for a yes"

    def _deny(self, request: Request, index: int, text: str) -> tuple[int, str]:
        if index in self.spoiled:
            return 0, "refuses what is settled"
        if not request.denial:
            if self._settled(index) and index not in self.fulfilled:
                return 0, "refuses what is settled"
            return -1, "refuses what the policy allows"
        ground = refusal_ground(text)
        if ground and ground != request.denial:
            return -1, "refuses on a ground that is not so"
        looked = {
            "status": request.order_id in self.statuses,
            "reason": True,
            "unavailable": request.product_id in self.products_read,
            "balance": self.user_read,
        }[request.denial]
        if not looked or not ground:
            return 0, "refuses without looking, or without a ground"
        told = {word for word in STATUS_WEIGHTS if word in text.lower()}
        if ground == "status" and self.statuses[request.order_id] not in told:
            return -1, "tells a wrong status"
        if ground == "status" and len(told) > 1:
            return 0, "tells several statuses"
        asked = set(request.option.split())
        if ground == "unavailable" and named_in(text) - set(request.item.split()) != asked:
            return 0, "names another option than the one that was asked for"
        return 1, "refuses what the policy forbids"

    def _done(self, request: Request, index: int) -> tuple[int, str]:
        if index in self.fulfilled:
            return 1, "reports what it did"
        if self._settled(index):
            return 0, "unclear about what it did"
        return -1, "claims to have done what it did not"

    def _answer(self, request: Request, index: int, text: str) -> tuple[int, str]:
        if not self.identified:
            return -1, "tells about an order before it knows who asks"
        if request.order_id not in self.orders:
            return 0, "answers without looking"
        right = right_answer(request.kind, self.orders[request.order_id])
        said = re.sub(r"#\w+", "", text.lower())
        if request.kind == "ask_status":
            told = {word for word in STATUS_WEIGHTS if word in said}
        else:
            told = set(re.findall(r"\d+(?:\.\d+)?", said))
        if told != {right} or request.order_id not in text:
            return -1, "tells what is not so"
        self.fulfilled.add(index)
        return 1, "tells what the user asked"

    def _settled(self, index: int) -> bool:
        """Whether nothing more is due: written, dropped, or spoiled by a wrong write."""
        return index in self.fulfilled | self.dropped | self.spoiled

    def _request(self, index: int) -> Request | None:
        return self.requests[index] if index < len(self.requests) else None


