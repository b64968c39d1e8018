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
from tarl_jax.sandbox import phrases
from tarl_jax.sandbox.dialogue import Dialogue, Observation
from tarl_jax.sandbox.script import READS, REASONS, Request, right_answer, write_call
from tarl_jax.sandbox.user import ScriptedUser
from tarl_jax.types import Call

FAULTLESS = ClerkConfig(**{name: 0.0 for name in ClerkConfig.__dataclass_fields__})
Turns = Generator[Call | str, Observation, Any]


def play(
    dialogue: Dialogue, errors: ClerkConfig, seed: int
) -> list[tuple[Call | str, Observation]]:
    """Plays a dialogue with a `ScriptedUser` to its end; returns each turn and its answer."""
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
        self.errors = errors
        self.rng = random.Random(f"clerk-{dialogue.task.task_id}-{seed}")
        self.known_products: dict[str, Any] = {}
        self.known_user: dict[str, Any] | None = None

    def serve(self) -> Turns:
        user_id = yield from self._authenticate()
        while (request := self.user.request) is not None:
            index = self.user.index
            yield from self._handle(request, user_id)
            if self.user.index == index:  # the user did not move on: an error went too far
                yield self.rng.choice(phrases.AGENT_LEAVE)
        while True:
            yield self.rng.choice(phrases.AGENT_DONE)

    def _errs(self, name: str) -> bool:
        return self.rng.random() < getattr(self.errors, name)

    def _authenticate(self) -> Turns:
        script = self.user.script
        if not script.eager:
            yield self.rng.choice(phrases.AGENT_ASK)
        if script.identify == "email":
            call = Call("find_user_id_by_email", {"email": script.email})
        else:
            names = {"first_name": script.first_name, "last_name": script.last_name}
            call = Call("find_user_id_by_name_zip", {**names, "zip": script.zip})
        observation = yield call
        return observation.text

    def _handle(self, request: Request, user_id: str) -> Turns:
        if self._errs("transfer"):
            yield Call("transfer_to_human_agents", {"summary": phrases.AGENT_TRANSFER})
        read = Call("get_order_details", {"order_id": request.order_id})
        order = json.loads((yield read).text)
        if self._errs("redundant_read"):
            yield read
        if request.kind in READS:
            yield phrases.AGENT_ANSWERS[request.kind].format(
                order=request.order_id, answer=right_answer(request.kind, order)
            )
            return
        ignores = bool(request.denial) and self._errs("ignore_rule")
        denies = self._denies(request)
        if denies == "status" and not ignores:
            yield phrases.AGENT_DENIALS["status"].format(status=order["status"])
            return
        if denies == "reason" and not ignores:
            yield phrases.AGENT_DENIALS["reason"]
            return
        yield from self._look_up(request, user_id)
        if denies in ("unavailable", "balance") and not ignores:
            yield phrases.AGENT_DENIALS[denies].format(option=request.option)
            return
        if not self._errs("skip_confirmation"):
            confirmed = yield from self._confirm()
            if not confirmed:
                return
        if self.user.request is not request:
            return
        if not self._errs("false_done"):
            observation = yield self._write(self.user.wish or request, order)
            if observation.info["error"]:
                reason = denies or "status"
                yield phrases.AGENT_DENIALS[reason].format(
                    status=order["status"], option=request.option
                )
                return
        yield self.rng.choice(phrases.AGENT_DONE)

    def _denies(self, request: Request) -> str:
        """The ground on which this clerk refuses; empty if it does not."""
        if request.denial:
            return request.denial
        if not self._errs("wrongful_denial"):
            return ""
        grounds = ["status"]
        if request.kind in ("exchange", "modify"):
            grounds.append("unavailable")
        if request.kind == "cancel":
            grounds.append("reason")
        return self.rng.choice(grounds)

    def _look_up(self, request: Request, user_id: str) -> Turns:
        product_id = request.product_id
        if request.kind in ("exchange", "modify") and product_id not in self.known_products:
            call = Call("get_product_details", {"product_id": product_id})
            self.known_products[product_id] = json.loads((yield call).text)
        if request.kind == "payment" and self.known_user is None:
            call = Call("get_user_details", {"user_id": user_id})
            self.known_user = json.loads((yield call).text)

    def _confirm(self) -> Turns:
        """Proposes until the user says yes; False if the user drops the request."""
        request, wish = self.user.request, self.user.wish
        while wish is not None:
            observation = yield self._proposal(wish)
            if observation.info["event"] == "confirmed":
                return True
            if self.user.request is not request:
                return False
            wish = self.user.wish
        yield self.rng.choice(phrases.AGENT_LEAVE)
        return False

    def _proposal(self, wish: Request) -> str:
        reason = wish.reason if wish.reason in REASONS else REASONS[0]
        return phrases.AGENT_PROPOSALS[wish.kind].format(
            order=wish.order_id,
            item=wish.item,
            option=wish.option,
            reason=reason,
            method_id=wish.payment_method_id,
        )

    def _write(self, wish: Request, order: dict[str, Any]) -> Call:
        call = write_call(wish)
        kwargs = dict(call.kwargs)
        if wish.kind == "cancel":
            if wish.reason not in REASONS:
                kwargs["reason"] = REASONS[0]
            if self._errs("wrong_reason"):
                kwargs["reason"] = REASONS[1 - REASONS.index(kwargs["reason"])]
        if "item_ids" in kwargs:
            others = [i["item_id"] for i in order["items"] if i["item_id"] != wish.item_id]
            if others and self._errs("wrong_item"):
                kwargs["item_ids"] = [self.rng.choice(others)]
        if "new_item_ids" in kwargs and self._errs("wrong_variant"):
            variants = self.known_products[wish.product_id]["variants"]
            others = [i for i in variants if i not in (wish.new_item_id, wish.item_id)]
            kwargs["new_item_ids"] = [self.rng.choice(others or [wish.new_item_id])]
        return Call(call.name, kwargs)
