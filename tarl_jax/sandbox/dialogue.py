"""One episode at the level of text: the agent acts, the user or a tool answers.

The rules are tau-bench's: a message or a tool call per turn, at most `max_turns` turns, the episode
ends when the user says `###STOP###` or the agent transfers to a human. For tau2-bench
`Ends` says otherwise.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, Protocol, runtime_checkable

import numpy as np

from tarl_jax.sandbox import phrases
from tarl_jax.sandbox.domain import Domain, Refusal
from tarl_jax.sandbox.scoring import done
from tarl_jax.sandbox.starts import start_of
from tarl_jax.sandbox.user import Reply
from tarl_jax.types import Call, Task

TRANSFER = "transfer_to_human_agents"
# A yes to what the agent has proposed; before it a no, or thanks, is none.
AGREES = re.compile(
    r"\b(?:yes|yeah|yep|yup|go ahead|proceed|confirm(?:ed)?|i agree|approved?|please do"
    r"|do (?:it|that|so)|sounds good|that works|that would be (?:great|fine|good|perfect))\b"
    r"|^\W*(?:ok(?:ay)?|sure)\b", re.I
)
DECLINES = re.compile(r"^\W*no\b|\b(?:do not|don't|never mind|nevermind)\b", re.I)


class User(Protocol):
    """Whoever plays the user."""

    def opening(self) -> str: ...

    def reply(self, message: str) -> Reply: ...


@runtime_checkable
class HasTools(Protocol):
    """A user with tools of its own: is given, before it speaks, what makes its calls and answers
    them, (name, arguments) -> text."""

    def take(self, act: Callable[[str, Mapping[str, Any]], str]) -> None: ...


UserOf = Callable[[Task, int], User]  # (task, seed of the episode) -> who plays its user


@dataclasses.dataclass(frozen=True)
class Ends:
    """What ends an episode beside the user; by default, tau-bench's rules.

    transfer: a transfer to a human; errors: so many refused calls (0: any number of them).
    messages: so many of agent, user and tools, the user's opening included (0: any number).
    """

    transfer: bool = True
    errors: int = 0
    messages: int = 0


TAU2_ENDS = Ends(transfer=False, errors=10, messages=200)


def rules_of(task: Task) -> Ends:
    """What ends an episode of a task by the rules of the benchmark that it is written for."""
    return TAU2_ENDS if task.reward_basis else Ends()


@dataclasses.dataclass(frozen=True)
class Malformed:
    """An agent turn that is neither a message nor a well-formed tool call."""

    reason: str


Action = Call | tuple[Call, ...] | str | Malformed  # several calls are made in order


@dataclasses.dataclass(frozen=True)
class Observation:
    """The answer to an agent turn.

    role: "tool" or "user"; text: what the agent sees; stop_reason: set if the episode has ended;
    info: facts for judge and viewer ("error", "wrote", after a write the goals that are
    "fulfilled", the user's "intent" and "event", and the "user_calls" before its message); clip: of
    a user that speaks, what the agent hears in place of the text, as in `Reply`.
    """

    role: str
    text: str
    stop_reason: str | None
    info: dict[str, Any]
    clip: Future[np.ndarray] | None = None


class Dialogue:
    """Plays `task` in `domain` against `user`.

    max_turns: after which it is cut off; 0: any number of them.
    brief_writes: after a successful write the agent sees only the record's new status, or the id of
    a reservation without one, or a message, not the whole; for policies with a short context.
    stop_waits: a user's stop in a message in which it agrees waits for its next message, as in
    `user.stop_waits`; what the agent calls before it writes is done.
    """

    def __init__(
        self,
        task: Task,
        domain: Domain,
        user: User,
        *,
        max_turns: int = 30,
        brief_writes: bool = False,
        stop_waits: bool = True,
        ends: Ends = Ends(),
    ):
        self.task = task
        self.domain = domain
        self.user = user
        self.state = start_of(domain, task.initial_state, task.task_id)
        self.turns = 0
        self._user_calls: list[dict[str, Any]] = []  # those that no `info` tells yet
        self._messages = 1  # of both sides and of tools
        self._errors = 0
        if domain.user and isinstance(user, HasTools):
            user.take(self._call_of_user)
        self.opening = user.opening()
        self.opening_info = self._with_calls({})
        if task.checks:
            self.opening_info["fulfilled"] = done(domain, task, self.state)
        self._max_turns = max_turns
        self._brief_writes = brief_writes
        self._stop_waits = stop_waits
        self._leaves = False  # whether the user has agreed, and said its goodbye
        self._ends = ends
        self._stop_reason: str | None = None

    def act(self, action: Call | str | Malformed) -> Observation:
        """Applies one agent turn. Raises RuntimeError once the episode has ended."""
        self.turns += 1
        self._messages += 1
        return self._act(action)

    def call(self, calls: Sequence[Call]) -> list[Observation]:
        """Applies one agent turn of several calls, up to one that ends the episode.

        Raises RuntimeError once the episode has ended.
        """
        self.turns += 1
        self._messages += 1
        made: list[Observation] = []
        for place, call in enumerate(calls):
            made.append(self._act(call, last=place + 1 == len(calls)))
            if made[-1].stop_reason:
                break
        return made

    def _act(self, action: Call | str | Malformed, last: bool = True) -> Observation:
        """One step; what is not the `last` of a turn is ended by no limit on turns or messages."""
        if self._stop_reason:
            raise RuntimeError(f"task {self.task.task_id!r}: the episode has ended already")
        self._messages += 1
        clip = None
        match action:
            case Call():
                role, text, stop, info = self._call(action)
            case Malformed(reason):
                role, text, stop = "tool", f"Error: {reason}", None
                info = {"error": True, "malformed": True}
            case _ if 0 < self._ends.messages <= 2 * self.turns:  # no room for an answer
                role, text, stop, info = "user", "", "max_messages", {}
            case _:
                reply = self._reply(action)
                role, text, clip = "user", reply.text, reply.clip
                info = self._with_calls(reply.info)
                stop = "user_stop" if reply.stop else None
        self._errors += bool(info.get("error"))
        if stop is None:
            stop = self._limit(last)
        self._stop_reason = stop
        return Observation(role, text, stop, info, clip)

    def _reply(self, message: str) -> Reply:
        if self._leaves:
            return Reply(phrases.STOP, {"event": "bye"})
        reply = self.user.reply(message)
        said = reply.text.replace(phrases.STOP, "").strip()
        if self._stop_waits and reply.stop and AGREES.search(said) and not DECLINES.search(said):
            self._leaves = True
            return dataclasses.replace(reply, text=said)
        return reply

    def _limit(self, last: bool) -> str | None:
        """Which limit the episode has come to, if any."""
        if 0 < self._ends.errors <= self._errors:
            return "max_errors"
        if not last:
            return None
        if 0 < self._ends.messages <= self._messages:
            return "max_messages"
        return "max_turns" if 0 < self._max_turns <= self.turns else None

    def _call_of_user(self, name: str, kwargs: Mapping[str, Any]) -> str:
        """A call that the user makes between its messages; the agent does not see it."""
        text = self.domain.call(self.state, name, kwargs, "user")
        error = isinstance(text, Refusal)
        self._errors += error
        self._messages += 2
        self._user_calls.append(
            {"name": name, "kwargs": dict(kwargs), "output": str(text), "error": error}
        )
        return text

    def _with_calls(self, info: Mapping[str, Any]) -> dict[str, Any]:
        """The facts of a user's message, with the calls before it and what they have brought."""
        calls, self._user_calls = self._user_calls, []
        found = {**info, "user_calls": calls} if calls else dict(info)
        tools = self.domain.tools_of("user")
        if any(tools[call["name"]].write for call in calls if call["name"] in tools):
            found["fulfilled"] = done(self.domain, self.task, self.state)
        return found

    def _call(self, call: Call) -> tuple[str, str, str | None, dict[str, Any]]:
        text = self.domain.call(self.state, call.name, dict(call.kwargs))
        error = isinstance(text, Refusal)
        tool = self.domain.tools.get(call.name)
        wrote = bool(tool and tool.write and not error)
        info: dict[str, Any] = {"error": error, "wrote": wrote}
        request = getattr(self.user, "index", None)
        if request is not None:
            info["request"] = request
        if wrote:
            info["fulfilled"] = done(self.domain, self.task, self.state)
        if wrote and self._brief_writes:
            text = brief(text)
        over = call.name == TRANSFER and not error and self._ends.transfer
        return "tool", text, "transfer" if over else None, info


def brief(text: str) -> str:
    """The status of a written record, or else the id of a reservation, or what the carrier says of
    it; any other text unchanged."""
    try:
        record = json.loads(text)
    except ValueError:
        return text
    for name in ("status", "reservation_id", "message"):
        if isinstance(record, dict) and name in record:
            return json.dumps({name: record[name]})
    return text
