"""The scripted user: states its requests, answers what it is asked, confirms, changes its mind."""

from __future__ import annotations

import dataclasses
import random
from concurrent.futures import Future
from typing import Any

import numpy as np

from tarl_jax.config import InputError
from tarl_jax.sandbox import phrases
from tarl_jax.sandbox.desk import Wish
from tarl_jax.sandbox.desks import desk_of
from tarl_jax.sandbox.script import Script
from tarl_jax.types import Task

PATIENCE = 3  # messages that lead nowhere before the user gives up


@dataclasses.dataclass(frozen=True)
class Reply:
    """What the user says.

    Attributes:
      text: as the agent sees it; holds one of phrases.STOPS if the user ends the conversation.
      info: what happened, for the judge and the viewer: the agent's "intent", the "request" (its
        index) that the agent's message was about, and the user's "event".
      clip: of a user that speaks, the sound of the text, which is then for judge and viewer alone;
        None: the agent reads.
    """

    text: str
    info: dict[str, Any]
    clip: Future[np.ndarray] | None = dataclasses.field(default=None, compare=False, repr=False)

    @property
    def stop(self) -> bool:
        return any(word in self.text for word in phrases.STOPS)

    @property
    def audio(self) -> np.ndarray | None:
        """What the agent hears, float32 [samples] at 16 kHz; waits for it. Raises SpeechError."""
        return self.clip.result() if self.clip else None


class ScriptedUser:
    """A user that follows `task.script`; phrasing and chatter come from `seed`.

    It confirms a proposal only if the proposal says what it wants, and otherwise corrects it. It
    believes a refusal and a claim that something is done, and then goes on to its next request.
    """

    def __init__(self, task: Task, seed: int):
        if task.script is None:
            raise InputError(f"task {task.task_id!r} has no script: a scripted user cannot play it")
        if task.persona and task.persona not in phrases.PERSONAS:
            known = ", ".join(phrases.PERSONAS)
            raise InputError(f"task {task.task_id!r}: persona {task.persona!r}: use one of {known}")
        self.script = Script.from_json(task.script)
        self.desk = desk_of(self.script.desk)
        self._user_id = task.user_id
        self._persona = phrases.PERSONAS.get(task.persona)
        self.index = 0  # request under discussion
        self.changed = False  # whether the change of mind of this request has happened
        self._patience = PATIENCE
        self._rng = random.Random(f"user-{task.task_id}-{seed}")

    @property
    def request(self) -> Any:
        """The request under discussion; None once all are dealt with."""
        requests = self.script.requests
        return requests[self.index] if self.index < len(requests) else None

    @property
    def wish(self) -> Any:
        """What the user wants now of that request; None if it has dropped it."""
        request = self.request
        return request.then if request and self.changed else request

    def opening(self) -> str:
        """The first message: a greeting, perhaps who it is, and the first request."""
        text = self._pick(phrases.USER_GREETINGS) + self._state_request()
        if self.script.eager:
            text += " " + self._identity(self.script.identify)
        return text

    def reply(self, message: str) -> Reply:
        """Answers an agent's message."""
        intent = self.desk.phrases.read_intent(message)
        info = {"intent": intent.kind, "request": self.index}
        request = self.request
        if request is None:
            return self._stop(info, "bye")
        asked = intent.kind.removeprefix("ask_")
        if asked != intent.kind:
            # A clerk that asks again and again gets nowhere.
            self._patience -= 1
            if self._patience < 0:
                return self._stop(info, "gave_up")
            return Reply(self._answer_identity(asked), {**info, "event": "identified"})
        match intent.kind:
            case "propose":
                return self._consider(request, message, intent.proposal, info)
            case "deny" | "done" | "leave":
                return self._advance(info)
            case "answer" if request.kind in self.desk.reads:
                return self._advance(info)
        return self._repeat(info, phrases.USER_REPEAT)

    def _consider(
        self, request: Wish, message: str, proposal: str, info: dict[str, Any]
    ) -> Reply:
        wish = self.wish
        if wish is None:
            return self._repeat(info, (self._pick(phrases.USER_DROP) + " ",), restate=False)
        if proposal != wish.kind or not self.desk.matches(message, wish):
            return self._repeat(info, phrases.USER_CORRECT)
        if request.change and not self.changed:
            self.changed = True
            changes = self.desk.phrases.changes
            text = {change: self._pick(texts) for change, texts in changes.items()}[request.change]
            if request.then:
                text = text.format(**self.desk.words(request.then))
            return Reply(text, {**info, "event": "changed_mind"})
        return Reply(self._pick(phrases.USER_YES), {**info, "event": "confirmed"})

    def _advance(self, info: dict[str, Any]) -> Reply:
        self.index += 1
        self.changed = False
        self._patience = PATIENCE
        if self.request is None:
            return self._stop(info, "bye")
        text = self._pick(phrases.USER_NEXT) + self._state_request()
        return Reply(text, {**info, "event": "next_request"})

    def _repeat(self, info: dict[str, Any], leads: tuple[str, ...], restate: bool = True) -> Reply:
        self._patience -= 1
        if self._patience < 0:
            return self._stop(info, "gave_up")
        text = self._pick(leads) + (self._state_request(chatter=False) if restate else "")
        return Reply(text.strip(), {**info, "event": "repeated"})

    def _stop(self, info: dict[str, Any], event: str) -> Reply:
        return Reply(f"{self._pick(phrases.USER_BYE)} {phrases.STOP}", {**info, "event": event})

    def _state_request(self, chatter: bool = True) -> str:
        wish = self.wish
        if wish is None:
            return self._pick(phrases.USER_DROP)
        said = self.desk.phrases
        why = self._pick(said.reasons[wish.reason]) if wish.reason else ""
        text = self._pick(said.requests[wish.kind]).format(**self.desk.words(wish), why=why)
        if chatter and self._rng.random() < 0.1:
            text += self._pick(phrases.USER_CHATTER)
        if chatter and wish.aside:
            text += f" {wish.aside}"
        if chatter and self._persona:
            text = self._pick(self._persona.leads) + text + self._pick(self._persona.tails)
        return text

    def _answer_identity(self, asked: str) -> str:
        known = self.script.identify
        if asked == known:
            return self._identity(known)
        return self._fill(self._pick(self.desk.phrases.lost[known]))

    def _identity(self, how: str) -> str:
        return self._fill(self._pick(self.desk.phrases.identity[how]))

    def _fill(self, template: str) -> str:
        s = self.script
        return template.format(email=s.email, first=s.first_name, last=s.last_name, zip=s.zip,
                               user=self._user_id)

    def _pick(self, options: tuple[str, ...]) -> str:
        return self._rng.choice(options)
