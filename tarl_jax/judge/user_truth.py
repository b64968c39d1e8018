"""A user that a language model plays, beside the scripted user of the same task.

The faultless clerk serves both at once: what the agent says moves the script on, and the model's
words are what the agent's side of the record shows. So the script says at every message what a
right user would have done: the truth that the model, and the check of users, are measured by.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from tarl_jax.judge.user_rules import (
    CONTRADICTS,
    EARLY_END,
    LEAKS,
    TOOL_TEXT,
    faults,
    is_leak,
    is_tool_text,
)
from tarl_jax.llm.errors import LLMError
from tarl_jax.sandbox.clerk import FAULTLESS, play
from tarl_jax.sandbox.dialogue import AGREES, DECLINES, Dialogue, Observation, User
from tarl_jax.sandbox.domain import Domain
from tarl_jax.sandbox.user import Reply, ScriptedUser
from tarl_jax.sandbox.verifier import verify
from tarl_jax.types import Call, Segment, Task, Trajectory

GOES_ON = "goes_on"  # a user that does not end where the script does: no fault of the check's
_TURNS = 60


@dataclasses.dataclass(frozen=True)
class Compared:
    """One episode: its record, what the script says is wrong with the user, what the check says.

    truth: kinds of faults, those of `user_rules` and GOES_ON; None: the model failed to answer.
    found: kinds that the check of users names.
    events: per message (the script's event, whether the model did the same).
    """

    trajectory: Trajectory | None
    truth: frozenset[str] | None
    found: frozenset[str]
    events: tuple[tuple[str, bool], ...]


class _Beside(ScriptedUser):
    """The script, which the model's words are compared with and which speaks in them."""

    def __init__(self, task: Task, seed: int, user: User):
        super().__init__(task, seed)
        self._instruction = task.instruction
        self._user = user
        self.truth: set[str] = set()
        self.events: list[tuple[str, bool]] = []

    def opening(self) -> str:
        super().opening()
        said = self._user.opening()
        self._compare("opening", Reply("", {}), Reply(said, {}))
        return said

    def reply(self, message: str) -> Reply:
        right, said = super().reply(message), self._user.reply(message)
        self._compare(right.info["event"], right, said)
        return Reply(said.text, right.info)

    def _compare(self, event: str, right: Reply, said: Reply) -> None:
        wrong: set[str] = set()
        agrees = bool(AGREES.search(said.text)) and not DECLINES.search(said.text)
        if is_tool_text(said.text):
            wrong.add(TOOL_TEXT)
        if is_leak(said.text, self._instruction):
            wrong.add(LEAKS)
        if said.stop and not right.stop:
            wrong.add(EARLY_END)
        elif right.stop and not said.stop:
            wrong.add(GOES_ON)
        elif (event == "confirmed" and not agrees) or (event == "changed_mind" and agrees):
            wrong.add(CONTRADICTS)
        self.truth |= wrong
        self.events.append((event, not wrong))


def compare(
    domain: Domain, tasks: Sequence[Task], user_of: Callable[[Task, int], User], seed: int = 0,
    workers: int = 8,
) -> list[Compared]:
    """Plays each task once, in threads. Tasks need scripts (a desk's; those of phones have none).

    user_of: makes the model's user of an episode, which is shown no script.
    """
    def one(task: Task) -> Compared:
        hidden = dataclasses.replace(task, script=None)
        try:
            beside = _Beside(task, seed, user_of(hidden, seed))
            dialogue = Dialogue(task, domain, beside, max_turns=_TURNS, stop_waits=False)
            turns = play(dialogue, FAULTLESS, seed)
        except LLMError as error:
            if error.fatal:
                raise
            return Compared(None, None, frozenset(), ())
        trajectory = _record(domain, hidden, seed, dialogue, turns)
        found = frozenset(fault.kind for fault in faults(trajectory, task.script))
        return Compared(trajectory, frozenset(beside.truth), found, tuple(beside.events))

    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(one, tasks))


def _record(
    domain: Domain, task: Task, seed: int, dialogue: Dialogue,
    turns: Sequence[tuple[Call | str, Observation]],
) -> Trajectory:
    segments = [Segment.forced("user", [], -1, dialogue.opening)]
    for turn, (action, answer) in enumerate(turns):
        calls = [action] if isinstance(action, Call) else []
        text = "" if calls else str(action)
        said = Segment("agent", [], [], [], turn, text, text, calls)
        segments += [said, Segment.forced(answer.role, [], turn, answer.text, **answer.info)]
    gold = [(call.name, dict(call.kwargs)) for call in task.gold_calls]
    verdict = verify(domain, dialogue.state, gold)
    stop = turns[-1][1].stop_reason or "max_turns"
    return Trajectory(task, seed, segments, stop, verdict.success and stop == "user_stop",
                      gold_diff=list(verdict.diff))


def summary(found: Sequence[Compared]) -> dict[str, dict[str, float]]:
    """What the episodes say.

    Returns: {"user": shares of episodes by what is wrong with the user, "same": per event of the
      script the share of messages in which the model did the same, "check": per kind how many of
      the user's faults the check finds, and the share of right episodes that it blames}.
    """
    played = [c for c in found if c.truth is not None]
    count = max(len(played), 1)
    kinds = (CONTRADICTS, LEAKS, EARLY_END, TOOL_TEXT, GOES_ON)
    user = {kind: sum(kind in (c.truth or ()) for c in played) / count for kind in kinds}
    user |= {"right": sum(not c.truth for c in played) / count,
             "passes": sum(bool(c.trajectory and c.trajectory.success) for c in played) / count,
             "failed_to_answer": len(found) - len(played)}
    events: dict[str, list[bool]] = collections.defaultdict(list)
    for c in played:
        for event, same in c.events:
            events[event].append(same)
    check = {}
    for kind in kinds[:-1]:
        wrong = [c for c in played if kind in (c.truth or ())]
        if wrong:
            check[f"finds {kind}"] = sum(bool(c.found) for c in wrong) / len(wrong)
    at_fault = [c for c in played if (c.truth or set()) - {GOES_ON}]
    right = [c for c in played if not (c.truth or set()) - {GOES_ON}]
    if at_fault:
        check["finds any"] = sum(bool(c.found) for c in at_fault) / len(at_fault)
    if right:
        check["false alarms"] = sum(bool(c.found) for c in right) / len(right)
    shares = {event: sum(of) / len(of) for event, of in sorted(events.items())}
    return {"user": user, "same": shares, "check": check}

