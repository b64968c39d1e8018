"""The scripted user of telecom: an owner of a phone, who does on it what the agent asks for.

It needs no script: who it is, where, and what is broken stand in the task's `initial_state`; what
would mend it in its `actions`; when it is content in its `checks`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tarl_jax.config import InputError
from tarl_jax.sandbox import phrases
from tarl_jax.sandbox.telecom_phrases import (
    ABROAD,
    GIVES_UP,
    GREETINGS,
    NOT_SO_MUCH,
    SOLVED,
    STANDS,
    STILL,
    WHO,
    YES,
    Meant,
    read,
)
from tarl_jax.sandbox.user import Reply
from tarl_jax.types import Task

Act = Callable[[str, Mapping[str, Any]], str]  # makes a call of the user, and returns the answer

PATIENCE = 4  # messages that lead nowhere before the user gives up
_GB = 2.0  # of data that a user pays for, where the task does not say


@dataclass(frozen=True)
class Complaint:
    """What a user finds wrong.

    check: the assertion by which a task shows it; said: how it is put.
    look: the tool by which the user sees whether it is well; good: what that then says; bad: what
      it must not say.
    """

    check: str
    said: tuple[str, ...]
    look: str
    good: str
    bad: str = "\0"


COMPLAINTS = {
    "mms": Complaint(
        "assert_can_send_mms",
        ("I cannot send picture messages. ", "My phone does not send pictures (MMS). "),
        "can_send_mms", "can send",
    ),
    "mobile_data": Complaint(
        "assert_internet_speed",
        ("My mobile data is slow or does not work. ", "The internet on my phone is too slow. "),
        "run_speed_test", "(Excellent)",
    ),
    "service": Complaint(
        "assert_service_status",
        ("My phone has no service. ", "I have no signal on my phone. "),
        "check_status_bar", "📶", "✈️",
    ),
}  # fmt: skip


def complaint_of(task: Task) -> str:
    """What the user of a task complains of, a key of COMPLAINTS. Raises InputError for nothing."""
    asserted = {check.name for check in task.checks}
    for name, complaint in COMPLAINTS.items():
        if complaint.check in asserted:
            return name
    raise InputError(f"task {task.task_id!r}: its checks ask for nothing that a scripted user could"
                     " complain of: let a language model play it, --config.user.kind=llm")


class TelecomUser:
    """The owner of a phone; phrasing comes from `seed`.

    It does one thing at a time and tells what the phone shows, nothing else. After each change it
    looks whether its complaint is mended, and ends the dialogue if so. The calls on the phone are
    made through what `take` was given; the agent does not see them.
    """

    def __init__(self, task: Task, seed: int):
        self.complaint = COMPLAINTS[complaint_of(task)]
        self.abroad = False
        self.name, self.phone = "", ""
        for action in (task.initial_state or {}).get("initialization_actions") or ():
            given = action.get("arguments") or {}
            if action["func_name"] == "set_user_info":
                self.name, self.phone = given["name"], given["phone_number"]
            self.abroad |= action["func_name"] == "set_user_location" and given["abroad"]
        # What the task has the user do, for where the agent does not say how.
        self._actions = [(a.name, dict(a.kwargs)) for a in task.actions or ()]
        self._gb = next((k["gb_amount"] for n, k in self._actions if n == "refuel_data"), _GB)
        self._patience = PATIENCE
        self._rng = random.Random(f"user-{task.task_id}-{seed}")
        self._act: Act | None = None

    def take(self, act: Act) -> None:
        """Gives the user its phone."""
        self._act = act

    def opening(self) -> str:
        """The first message: what is wrong, and who the user is."""
        text = self._pick(GREETINGS) + self._pick(self.complaint.said) + self._who()
        return text + (self._pick(ABROAD) if self.abroad else "")

    def reply(self, message: str) -> Reply:
        """Answers an agent's message, and does what it asks for."""
        meant = read(message)
        info: dict[str, Any] = {"intent": meant.tool or meant.kind}
        if meant.kind == "transfer":
            return Reply(phrases.STOPS[1], {**info, "event": "bye"})
        if meant.kind == "tool":
            text, changed = self._do(meant)
            if changed or meant.tool == self.complaint.look:
                return self._look(info, text)
            return Reply(text, {**info, "event": "told"})
        self._patience -= 1
        if self._patience < 0:
            return Reply(f"{self._pick(GIVES_UP)} {phrases.STOP}", {**info, "event": "gave_up"})
        if meant.kind == "who":
            return Reply(self._who(), {**info, "event": "identified"})
        if meant.kind == "yes":
            enough = meant.gb in (None, self._gb)
            text = self._pick(YES if enough else NOT_SO_MUCH).format(gb=self._gb)
            return Reply(text, {**info, "event": "confirmed" if enough else "corrected"})
        return self._look(info, "")

    def _do(self, meant: Meant) -> tuple[str, bool]:
        """Makes the call that was asked for; what it says, and whether it changed something."""
        tool = meant.tool
        if tool in STANDS and meant.on is not None:
            look, sign = STANDS[tool]
            if (sign in self._call(look, {})) == meant.on:
                return f"It is {'on' if meant.on else 'off'} already.", False
        said = self._call(tool, self._arguments(meant))
        if tool.startswith(("check_", "run_", "can_")):
            return said, False
        return said.partition("\nStatus Bar")[0], True

    def _arguments(self, meant: Meant) -> dict[str, Any]:
        known = [kwargs for name, kwargs in self._actions if name == meant.tool]
        match meant.tool:
            case "set_network_mode_preference":
                return {"mode": meant.mode} if meant.mode else {"mode": "4g_5g_preferred"}
            case "grant_app_permission":
                open_one = known[0]["permission"] if known else "storage"
                return {"app_name": "messaging", "permission": meant.permission or open_one}
            case "check_app_permissions" | "check_app_status":
                return {"app_name": "messaging"}
            case "set_apn_settings":
                return known[0] if known else {"apn_settings": {}}
        return {}

    def _look(self, info: dict[str, Any], text: str) -> Reply:
        """Looks whether the complaint is mended, and says so."""
        complaint = self.complaint
        seen = self._call(complaint.look, {})
        if complaint.good in seen and complaint.bad not in seen:
            text = f"{text} {self._pick(SOLVED)} {phrases.STOP}".strip()
            return Reply(text, {**info, "event": "bye"})
        told = text or seen
        return Reply((told + self._pick(STILL)).strip(), {**info, "event": "repeated"})

    def _call(self, name: str, kwargs: Mapping[str, Any]) -> str:
        if self._act is None:
            raise RuntimeError("a user of telecom needs its phone: play it in a `Dialogue`")
        return self._act(name, kwargs)

    def _who(self) -> str:
        return self._pick(WHO).format(name=self.name, phone=self.phone)

    def _pick(self, options: tuple[str, ...]) -> str:
        return self._rng.choice(options)
