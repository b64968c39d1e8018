"""The rule judge: scores every turn of a finished episode, without a language model.

+1 right, 0 a minor issue, -1 a major deviation: an irreversible write that is wrong, or that the
user did not agree to; or wrong information given to the user (a refusal of what is allowed, a claim
that something is done which is not).
It knows the hidden script and the right calls, and reads the transcript only, so that saved
trajectories can be judged again. A write that a tool rejects changes nothing and is minor. What a
request needs and which facts a refusal must name, the domain's desk says (`sandbox.desk`).

Every deviation is marked, also after the first; the reward decides how many of them cost.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from tarl_jax.sandbox.desk import Wish, call_key
from tarl_jax.sandbox.desks import desk_of
from tarl_jax.sandbox.script import Script
from tarl_jax.types import CUT_OFF, Call, Segment, Trajectory


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
        self.desk = desk_of(script.desk)
        self.requests: Sequence[Wish] = script.requests
        self.open_calls = list(trajectory.task.gold_calls)
        self.asked = script.eager  # who says who it is need not be asked
        self.identified = script.eager and not self.desk.finders
        self.answers: dict[str, str] = {}  # what each read showed at first, by `call_key`
        self.confirmed: set[int] = set()  # requests whose present wish the user confirmed
        self.changed: set[int] = set()  # requests about which the user changed its mind
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
            asked = (i for i, r in enumerate(self.requests) if r.kind in self.desk.reads)
            if self.open_calls or not all(map(self._settled, asked)):
                return -1, "hands over a customer it could serve"
            return 0, "a transfer that was not needed"
        if call_key(call) in self.answers:
            return 0, "reads the same again"
        self.answers[call_key(call)] = answer.text
        return self._read(call, answer)

    def _read(self, call: Call, answer: Segment) -> tuple[int, str]:
        request = self._request(answer.info["request"])
        if call.name in self.desk.finders:
            found = answer.text == self.task.user_id
            first = found and not self.identified
            self.identified |= found
            return (1, "identifies the user") if first else (0, "not the user, or known already")
        if request is not None and self.identified and call in self._needed(request, answer):
            return 1, "reads what the request needs"
        return 0, "a read that the request does not need, or before it knows who asks"

    def _needed(self, request: Wish, answer: Segment) -> list[Call]:
        """What there is to read for a request as it stands."""
        wish = request.then if answer.info["request"] in self.changed else request
        if request.denial in self.desk.early:
            return [self.desk.look(wish)]
        return [self.desk.look(wish), *self.desk.look_further(wish, self.task.user_id)]

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
            r.gold in self.open_calls or r.kind in self.desk.reads for r in unserved
        ):
            return -1, "lets the user give up on a request that it could serve"
        if intent.startswith("ask_"):
            needed = not (self.identified or self.asked)
            self.asked = True
            self.identified |= not self.desk.finders
            return (1, "asks who the user is") if needed else (0, "asks what it knows")
        match intent:
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
            case "answer" if request.kind in self.desk.reads:
                return self._answer(request, index, text)
        return 0, "the user cannot tell what this means"

    def _propose(self, request: Wish, index: int, event: str) -> tuple[int, str]:
        known = self._record(request) is not None and self.identified
        again = index in self.confirmed
        if event == "confirmed":
            self.confirmed.add(index)
        if event == "changed_mind":
            (self.changed if request.then else self.dropped).add(index)
        if event not in ("confirmed", "changed_mind"):
            return 0, "proposes what the user did not ask for"
        if request.denial:
            return 0, "proposes what the policy forbids"
        if again:
            return 0, "asks again for a yes it has"
        if not known:
            return 0, f"proposes before it knows the user and the {self.desk.record}"
        return 1, "lists the action and asks for a yes"

    def _deny(self, request: Wish, index: int, text: str) -> tuple[int, str]:
        if index in self.spoiled:
            return 0, "refuses what is settled"
        if not request.denial:
            if self._settled(index) and index not in self.fulfilled:
                return 0, "refuses what is settled"
            return -1, "refuses what the policy allows"
        ground = self.desk.phrases.refusal_ground(text)
        if ground and ground != request.denial:
            return -1, "refuses on a ground that is not so"
        evidence = self.desk.evidence(request, self.task.user_id)
        if not ground or not all(call_key(call) in self.answers for call in evidence):
            return 0, "refuses without looking, or without a ground"
        wrong = self.desk.check_refusal(request, text, self._record(request))
        if wrong is not None:
            return wrong
        return 1, "refuses what the policy forbids"

    def _done(self, request: Wish, index: int) -> tuple[int, str]:
        if index in self.fulfilled:
            return 1, "reports what it did"
        if self._settled(index):
            return 0, "unclear about what it did"
        return -1, "claims to have done what it did not"

    def _answer(self, request: Wish, index: int, text: str) -> tuple[int, str]:
        if not self.identified:
            return -1, f"tells about {self.desk.a_record} before it knows who asks"
        record = self._record(request)
        if record is None:
            return 0, "answers without looking"
        right = self.desk.right_answer(request, record)
        if self.desk.told(request, text) != {right} or request.record_id not in text:
            return -1, "tells what is not so"
        self.fulfilled.add(index)
        return 1, "tells what the user asked"

    def _record(self, request: Wish) -> dict[str, Any] | None:
        """What the request is about, as it was read; None if it was not."""
        text = self.answers.get(call_key(self.desk.look(request)))
        return None if text is None else json.loads(text)

    def _settled(self, index: int) -> bool:
        """Whether nothing more is due: written, dropped, or spoiled by a wrong write."""
        return index in self.fulfilled | self.dropped | self.spoiled

    def _request(self, index: int) -> Wish | None:
        return self.requests[index] if index < len(self.requests) else None


