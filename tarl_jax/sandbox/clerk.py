"""A scripted clerk: the expert that shows a task can be done, and the teacher that errs.

The clerk may look at the user's present wish, so that it need not understand language; but it
only ever uses what the dialogue has shown by then, so that a policy can learn to do the same.
"""

from __future__ import annotations

import json
import random
from collections.abc import Generator
from typing import Any

from tarl_jax.config import ClerkConfig
from tarl_jax.sandbox import phrases, telecom_clerk
from tarl_jax.sandbox.desk import Wish, call_key
from tarl_jax.sandbox.dialogue import Dialogue, Observation
from tarl_jax.sandbox.domain import Record
from tarl_jax.sandbox.telecom_user import TelecomUser
from tarl_jax.sandbox.user import ScriptedUser
from tarl_jax.types import Call

FAULTLESS = ClerkConfig(**{name: 0.0 for name in ClerkConfig.__dataclass_fields__})
Turns = Generator[Call | str, Observation, Any]


def play(
    dialogue: Dialogue, errors: ClerkConfig, seed: int
) -> list[tuple[Call | str, Observation]]:
    """Plays a dialogue with a scripted user to its end; returns each turn and its answer."""
    if isinstance(dialogue.user, TelecomUser):
        turns = telecom_clerk.serve(dialogue, errors, f"{dialogue.task.task_id}-{seed}")
    else:
        turns = _Clerk(dialogue, errors, seed).serve()
    history = []
    action = next(turns)
    while True:
        observation = dialogue.act(action)
        history.append((action, observation))
        if observation.stop_reason:
            return history
        action = turns.send(observation)


class _Clerk:
    def __init__(self, dialogue: Dialogue, errors: ClerkConfig, seed: int):
        if not isinstance(dialogue.user, ScriptedUser):
            raise TypeError("the clerk serves a ScriptedUser only: it looks at its present wish")
        self.user = dialogue.user
        self.desk = dialogue.user.desk
        self.user_id = dialogue.task.user_id
        self.errors = errors
        self.rng = random.Random(f"clerk-{dialogue.task.task_id}-{seed}")
        self.known: dict[str, Any] = {}  # what further looks have shown, by `call_key`

    def serve(self) -> Turns:
        yield from self._authenticate()
        while (request := self.user.request) is not None:
            index = self.user.index
            yield from self._handle(request)
            if self.user.index == index:  # the user did not move on: an error went too far
                yield self.rng.choice(phrases.AGENT_LEAVE)
        while True:
            yield self.rng.choice(phrases.AGENT_DONE)

    def _errs(self, name: str) -> bool:
        return self.rng.random() < getattr(self.errors, name)

    def _authenticate(self) -> Turns:
        script = self.user.script
        if not script.eager:
            yield self.rng.choice(self.desk.phrases.ask)
        call = self.desk.find_user(script)
        if call is not None:
            self.user_id = (yield call).text

    def _handle(self, request: Wish) -> Turns:
        if self._errs("transfer"):
            yield Call("transfer_to_human_agents", {"summary": phrases.AGENT_TRANSFER})
        read = self.desk.look(request)
        record = json.loads((yield read).text)
        if self._errs("redundant_read"):
            yield read
        if request.kind in self.desk.reads:
            yield self.desk.answer(request, record)
            return
        ignores = bool(request.denial) and self._errs("ignore_rule")
        denies = self._denies(request)
        if denies in self.desk.early and not ignores:
            yield self.desk.refusal(denies, request, record)
            return
        yield from self._look_further(request)
        if denies and denies not in self.desk.early and not ignores:
            yield self.desk.refusal(denies, request, record)
            return
        if not self._errs("skip_confirmation"):
            confirmed = yield from self._confirm(record)
            if not confirmed:
                return
        if self.user.request is not request:
            return
        if not self._errs("false_done"):
            wish = self.user.wish or request
            observation = yield self.desk.write(wish, record, self.known, self._errs, self.rng)
            retries = not request.denial and self.errors.retry > 0
            if observation.info["error"] and retries and self._errs("retry"):
                right = self.desk.write(wish, record, self.known, lambda _: False, self.rng)
                observation = yield right
            if observation.info["error"]:
                yield self.desk.refusal(denies, request, record)
                return
        yield self.rng.choice(phrases.AGENT_DONE)

    def _denies(self, request: Wish) -> str:
        """The ground on which this clerk refuses; empty if it does not."""
        if request.denial:
            return request.denial
        if not self._errs("wrongful_denial"):
            return ""
        return self.rng.choice(self.desk.wrong_grounds(request))

    def _look_further(self, wish: Wish) -> Turns:
        for call in self.desk.look_further(wish, self.user_id):
            if call_key(call) not in self.known:
                self.known[call_key(call)] = json.loads((yield call).text)

    def _confirm(self, record: Record) -> Turns:
        """Proposes until the user says yes; False if the user drops the request."""
        request, wish = self.user.request, self.user.wish
        while wish is not None:
            observation = yield self.desk.proposal(wish, record, self.known)
            if observation.info["event"] == "confirmed":
                return True
            if self.user.request is not request:
                return False
            wish = self.user.wish
            if wish is not None:
                yield from self._look_further(wish)
        yield self.rng.choice(phrases.AGENT_LEAVE)
        return False
