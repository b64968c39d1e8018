"""The rule judge: scores every turn of a finished episode, without a language model.

It knows the hidden script and the right calls, and reads the transcript only, so that saved
trajectories can be judged again. What a request needs and which facts a refusal must name, the
domain's desk says (`sandbox.desk`).

 1  right: brings a request to its end: asks for the yes, writes, reports, answers, refuses.
 0  neutral: what every episode does, however it ends (finds the user, reads what it must), and
    knock-ons: what only carries out what an earlier turn has made inevitable.
 0  minor: no harm yet, but it foretells failure: a call that a tool rejects (it changes nothing,
    and another try is open; see below), a malformed turn, a needless or repeated step, an unclear
    message.
-1  major: the turn that makes the failure of a request inevitable, or that breaks a rule beyond
    mending. Which turn that is:

- A wrong write: the write. No tool takes it back, and until then the right one was open. Whatever
  follows about the record that it changed, or about the request under discussion, is a knock-on.
- A right write without the user's yes, or for a user it did not identify: the write. The request
  ends right, but nobody agreed to it.
- A refusal of what is allowed, or leaving it: that message, since the user believes it and goes on.
  After a tool rejected the request's own write it is a knock-on, and that write has the -1: it
  is what made the agent give up, and another try was open. (Scoring neither would pay for a call
  that is sure to be rejected, and a refusal after it.)
- "Done" without a write, also after a rejected one: that message, which is untrue. The write that
  makes it true later, if the user had said yes to it, is a knock-on.
- An untrue answer, ground or fact, or an answer to a stranger: that message.
- A transfer, or a user who gives up: the transfer, or the last message. One right message in its
  place would still have served. Not where all that is left was lost before.
- Cut off with a request unserved: the first of the last turns if these only repeat earlier ones,
  for they change nothing and use up the room; the others are knock-ons. Without such a loop the
  last turn. Not where all that is left was lost before.

A request that the user has left behind counts no more: what went wrong with it has its -1. Every -1
is marked, also after the first; the reward decides how many of them cost.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from tarl_jax.config import InputError
from tarl_jax.sandbox.desk import Wish, call_key
from tarl_jax.sandbox.desks import desk_of
from tarl_jax.sandbox.script import Script
from tarl_jax.types import CUT_OFF, Call, Segment, Trajectory

_THOUGHTS = ("think", "calculate")  # tools that read no record
_Mark = tuple[int, bool, str]  # score, minor, reason


@dataclasses.dataclass(frozen=True)
class Judgement:
    """Per agent turn a score (-1, 0, +1), a reason, and whether a 0 is minor or neutral.

    minors: empty: none. Raises InputError where another score than 0 is minor.
    """

    scores: list[int]
    notes: list[str]
    minors: list[bool] = dataclasses.field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.minors:
            object.__setattr__(self, "minors", [False] * len(self.scores))
        if len(self.minors) != len(self.scores):
            raise InputError(f"a judgement of {len(self.scores)} turns says of {len(self.minors)}"
                             " whether they are minor: say it of each, or of none")
        wrong = [s for s, minor in zip(self.scores, self.minors, strict=True) if minor and s != 0]
        if wrong:
            raise InputError(f"a judgement calls a turn of score {wrong[0]:+d} minor: only a 0 is")


def judge(trajectory: Trajectory) -> Judgement | None:
    """Scores each agent turn; None (abstain) where the task has no script to judge by."""
    if trajectory.task.script is None or trajectory.success is None:
        return None
    script = Script.from_json(trajectory.task.script)
    if [r.gold for r in script.requests if r.gold] != list(trajectory.task.gold_calls):
        return None  # the script does not tell what was right
    rules = _Rules(trajectory, script)
    answers = trajectory.answers
    try:
        marks = [rules.mark(turn, answers.get(turn.turn, [])) for turn in trajectory.turns]
    except KeyError:  # answers without a scripted user's facts
        return None
    for turn in rules.gave_up:
        marks[turn] = _major("a rejected write, after which it gave up")
    if trajectory.stop_reason in CUT_OFF and marks and rules.servable():
        first = len(marks) - max(rules.repeats, 1)
        marks[first] = _major("runs out of turns with a request unserved")
        for turn in range(first + 1, len(marks)):
            marks[turn] = _neutral("goes round in the same circle")
    return Judgement(
        [score for score, _, _ in marks], [note for _, _, note in marks],
        [minor for _, minor, _ in marks],
    )


def _right(note: str) -> _Mark:
    return 1, False, note


def _neutral(note: str) -> _Mark:
    return 0, False, note


def _minor(note: str) -> _Mark:
    return 0, True, note


def _major(note: str) -> _Mark:
    return -1, False, note


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
        self.now = 0  # the request under discussion
        self.confirmed: set[int] = set()  # requests whose present wish the user confirmed
        self.changed: set[int] = set()  # requests about which the user changed its mind
        self.dropped: set[int] = set()
        self.fulfilled: set[int] = set()
        self.claimed: set[int] = set()  # requests that it said were done, and were not
        self.rejected: dict[int, int] = {}  # turn of a request's own write that a tool rejected
        self.gave_up: set[int] = set()  # of these turns, those after which the agent gave up
        self.lost: set[int] = set()  # requests about a record that a wrong write has changed
        self.spoiled: set[int] = set()  # these, and those under discussion at a wrong write
        self.seen: set[str] = set()  # turns since the last write or request
        self.repeats = 0  # how many of the last turns were in it
        asking = [i for i, r in enumerate(self.requests) if r.kind in self.desk.reads]
        told = len(asking) == len(self.task.outputs)
        self.outputs = dict(zip(asking, self.task.outputs, strict=True)) if told else {}

    def mark(self, turn: Segment, answers: Sequence[Segment]) -> _Mark:
        """Of one turn; `answers` is what the user replied, or the tools that it called."""
        before = self.now
        mark = self._mark(turn, answers)
        did = " ".join(map(call_key, turn.calls)) or turn.message or turn.unheard
        self.repeats = self.repeats + 1 if did in self.seen else 0
        self.seen.add(did)
        if self.now != before or any(answer.info.get("wrote") for answer in answers):
            self.seen, self.repeats = set(), 0
        return mark

    def servable(self) -> bool:
        """Whether a request is left that could still end right."""
        return any(
            not self._settled(i) and (r.gold in self.open_calls or r.kind in self.desk.reads)
            for i, r in enumerate(self.requests) if i >= self.now
        )

    def _mark(self, turn: Segment, answers: Sequence[Segment]) -> _Mark:
        if "malformed" in turn.info:
            return _minor("malformed turn")
        if not answers:
            return _neutral("a turn without an answer")
        if not turn.calls:
            return self._message(turn.message, answers[0])
        # A turn is as good as its worst call.
        marks = [self._call(*made) for made in zip(turn.calls, answers, strict=True)]
        return min(marks, key=lambda mark: (mark[0], not mark[1]))

    def _call(self, call: Call, answer: Segment) -> _Mark:
        self.now = index = answer.info["request"]
        if answer.info["error"]:
            self._rejected(call, index, answer.turn)
            return _minor("the tool rejected the call")
        if answer.info["wrote"]:
            return self._write(call, index)
        if call.name == "transfer_to_human_agents":
            if self.servable():
                return _major("hands over a customer it could serve")
            if any(i >= index for i in self.spoiled):
                return _neutral("hands over what is lost")
            return _minor("a transfer that was not needed")
        if call_key(call) in self.answers:
            return _minor("reads the same again")
        self.answers[call_key(call)] = answer.text
        return _neutral("thinks") if call.name in _THOUGHTS else self._read(call, answer, index)

    def _rejected(self, call: Call, index: int, turn: int) -> None:
        request = self._request(index)
        own = request and self._wish(request, index).call
        if request and own and call.name == own.name and request.record_id in call.kwargs.values():
            self.rejected[index] = turn

    def _read(self, call: Call, answer: Segment, index: int) -> _Mark:
        request = self._request(index)
        if call.name in self.desk.finders:
            found = answer.text == self.task.user_id
            first = found and not self.identified
            self.identified |= found
            if first:
                return _neutral("identifies the user")
            return _minor("not the user, or known already")
        if request is not None and self.identified and call in self._needed(request, index):
            return _neutral("reads what the request needs")
        return _minor("a read that the request does not need, or before it knows who asks")

    def _needed(self, request: Wish, index: int) -> list[Call]:
        """What there is to read for a request as it stands."""
        wish = self._wish(request, index)
        if request.denial in self.desk.early:
            return [self.desk.look(wish)]
        return [self.desk.look(wish), *self.desk.look_further(wish, self.task.user_id)]

    def _write(self, call: Call, index: int) -> _Mark:
        if call not in self.open_calls:
            about = call.kwargs.values()
            self.lost |= {i for i, r in enumerate(self.requests) if r.record_id in about}
            self.spoiled |= {*self.lost, index}
            return _major("a wrong write")
        self.open_calls.remove(call)
        owner = next(i for i, r in enumerate(self.requests) if r.gold == call)
        if owner in self.lost:
            return _neutral("the right write, after a wrong one")
        self.fulfilled.add(owner)
        if not self.identified:
            return _major("a write for a user it did not identify")
        if owner in self.confirmed & self.claimed:
            return _neutral("writes what it said was done")
        if owner not in self.confirmed or owner != index:
            return _major("a write without the user's yes")
        return _right("the right write, confirmed")

    def _message(self, text: str, answer: Segment) -> _Mark:
        intent, event = answer.info["intent"], answer.info["event"]
        self.now = index = answer.info["request"]
        mark = self._said(text, intent, event, index)
        self.now += event == "next_request"
        return mark

    def _said(self, text: str, intent: str, event: str, index: int) -> _Mark:
        request = self._request(index)
        if request is None:
            return _neutral("there is nothing left to do")
        if event == "gave_up" and self.servable():
            return _major("lets the user give up on a request that it could serve")
        if intent.startswith("ask_"):
            needed = not (self.identified or self.asked)
            self.asked = True
            self.identified |= not self.desk.finders
            return _neutral("asks who the user is") if needed else _minor("asks what it knows")
        match intent:
            case "propose":
                return self._propose(request, index, event)
            case "deny":
                return self._deny(request, index, text)
            case "done":
                return self._done(index)
            case "leave":
                return self._leave(request, index)
            case "answer" if request.kind in self.desk.reads:
                return self._answer(request, index, text)
        return _minor("the user cannot tell what this means")

    def _propose(self, request: Wish, index: int, event: str) -> _Mark:
        known = self._record(request) is not None and self.identified
        again = index in self.confirmed
        if event == "confirmed":
            self.confirmed.add(index)
        if event == "changed_mind":
            (self.changed if request.then else self.dropped).add(index)
        if event not in ("confirmed", "changed_mind"):
            return _minor("proposes what the user did not ask for")
        if request.denial:
            return _minor("proposes what the policy forbids")
        if again:
            return _minor("asks again for a yes it has")
        if not known:
            return _minor(f"proposes before it knows the user and the {self.desk.record}")
        return _right("lists the action and asks for a yes")

    def _deny(self, request: Wish, index: int, text: str) -> _Mark:
        if index in self.spoiled:
            return _neutral("refuses what a wrong write has settled")
        if not request.denial:
            if index in self.fulfilled:
                return _major("refuses what it has done")
            if index in self.dropped:
                return _minor("refuses what the user dropped")
            if index in self.rejected:
                self.gave_up.add(self.rejected[index])
                return _neutral("refuses what a tool rejected")
            return _major("refuses what the policy allows")
        ground = self.desk.phrases.refusal_ground(text)
        if ground and ground != request.denial:
            return _major("refuses on a ground that is not so")
        evidence = self.desk.evidence(request, self.task.user_id)
        if not ground or not all(call_key(call) in self.answers for call in evidence):
            return _minor("refuses without looking, or without a ground")
        wrong = self.desk.check_refusal(request, text, self._record(request))
        if wrong is not None:
            score, note = wrong
            return _major(note) if score < 0 else _minor(note)
        return _right("refuses what the policy forbids")

    def _leave(self, request: Wish, index: int) -> _Mark:
        if index in self.dropped:
            return _right("leaves what the user dropped")
        if index in self.spoiled:
            return _neutral("leaves what a wrong write has settled")
        if request.denial or index in self.fulfilled:
            return _minor("unclear about what it did")
        if index in self.rejected:
            self.gave_up.add(self.rejected[index])
            return _neutral("leaves what a tool rejected")
        return _major("leaves a request that it could serve")

    def _done(self, index: int) -> _Mark:
        if index in self.fulfilled - self.lost:
            return _right("reports what it did")
        if index in self.spoiled:
            return _neutral("reports a wrong write")
        if index in self.dropped:
            return _minor("unclear about what it did")
        self.claimed.add(index)
        return _major("claims to have done what it did not")

    def _answer(self, request: Wish, index: int, text: str) -> _Mark:
        if not self.identified:
            return _major(f"tells about {self.desk.a_record} before it knows who asks")
        record, told = self._record(request), self.desk.told(request, text)
        if record is None:
            right = self.outputs.get(index)
            if right is not None and told != {right}:
                return _major("tells what is not so")
            return _minor("answers without looking")
        if told != {self.desk.right_answer(request, record)} or request.record_id not in text:
            return _major("tells what is not so")
        self.fulfilled.add(index)
        return _right("tells what the user asked")

    def _record(self, request: Wish) -> dict[str, Any] | None:
        """What the request is about, as it was read; None if it was not."""
        text = self.answers.get(call_key(self.desk.look(request)))
        return None if text is None else json.loads(text)

    def _settled(self, index: int) -> bool:
        """Whether nothing more is due: written, dropped, or spoiled by a wrong write."""
        return index in self.fulfilled | self.dropped | self.spoiled

    def _wish(self, request: Wish, index: int) -> Wish:
        """What the user wants of a request now, or last wanted before it dropped it."""
        return request.then if index in self.changed else request

    def _request(self, index: int) -> Wish | None:
        return self.requests[index] if index < len(self.requests) else None
