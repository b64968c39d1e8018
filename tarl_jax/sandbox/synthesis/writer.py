"""A language model writes the instruction of a checked task, and a committee of reviews votes.

As in APIGEN-MT (arXiv 2504.03601): what the reviews say against a text goes back to the writer for
another try. The script and the calls stay as they were checked; only the words change.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any, Protocol

from tarl_jax.config import InputError
from tarl_jax.config.plain import loads
from tarl_jax.sandbox import phrases
from tarl_jax.sandbox.script import Script
from tarl_jax.sandbox.synthesis.checks import Rejected
from tarl_jax.types import Task

_WRITE = """\
You write the hidden instruction of a customer who talks to the clerk of an online shop. Write to
the customer ("You are ..."), say who they are and how they identify themselves, what they want in
which order, where they change their mind when asked to confirm, and how they speak. Keep every
name, email, zip code, order id, item, option and payment method as it is given; add no wish and no
fact. Do not say what the clerk should do or which wishes the shop refuses. Answer with a JSON
object {"instruction": "..."} and nothing else."""
_REVIEW = """\
You review the hidden instruction of a customer in a test of a shop's clerk. Accept it only if a
customer who follows it wants exactly what the facts say: nothing left out, nothing added, nothing
that contradicts or gives away the calls of the right solution. Answer with a JSON object
{"accept": true or false, "reason": "..."} and nothing else."""


class Chat(Protocol):
    """A chat model: messages with "role" and "content" in, text out.

    key: names the request, so that two reviews of one text are two samples.
    """

    def __call__(self, messages: list[dict[str, str]], *, key: str) -> str: ...


@dataclasses.dataclass(frozen=True)
class Writer:
    """Writes instructions with `chat`: `tries` texts at most, each before `reviews` reviews.

    A text is taken if more than half of the reviews accept it. A review that cannot be read is no
    vote for it.
    """

    chat: Chat
    reviews: int = 3
    tries: int = 3

    def __post_init__(self) -> None:
        for name in ("reviews", "tries"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} = {getattr(self, name)}: must be at least 1")

    def __call__(self, task: Task) -> Task:
        """The task with a text that the committee accepted; raises Rejected if it accepts none."""
        facts = _facts(task)
        messages = [{"role": "system", "content": _WRITE}, {"role": "user", "content": facts}]
        reason = ""
        for number in range(self.tries):
            key = f"{task.task_id}/{number}"
            said = self.chat(messages, key=f"{key}/write")
            text = _object(said).get("instruction")
            if not isinstance(text, str) or not text.strip():
                reason, against = "the answer is not the JSON asked for", [
                    'the answer was not a JSON object {"instruction": "..."}'
                ]
            elif missing := [fact for fact in _verbatim(task) if fact not in text]:
                reason, against = "facts are left out", [f"it lacks {', '.join(missing)}"]
            else:
                accepted, against = self._vote(facts, text, key)
                if accepted:
                    return dataclasses.replace(task, instruction=text.strip())
                reason = "the committee accepts no text"
            messages = [
                *messages, {"role": "assistant", "content": said},
                {"role": "user", "content": "Not accepted: " + "; ".join(against)
                 + ". Write it again."},
            ]
        raise Rejected("instruction", reason, task.task_id)

    def _vote(self, facts: str, text: str, key: str) -> tuple[bool, list[str]]:
        """Whether most reviews accept the text, and what those that do not say against it."""
        messages = [
            {"role": "system", "content": _REVIEW},
            {"role": "user", "content": f"Facts:\n{facts}\n\nInstruction:\n{text}"},
        ]
        votes, against = 0, []
        for number in range(self.reviews):
            review = _object(self.chat(messages, key=f"{key}/review-{number}"))
            if review.get("accept") is True:
                votes += 1
            elif review.get("accept") is False:
                against.append(str(review.get("reason") or "no reason was given"))
        return 2 * votes > self.reviews, against or ["the reviews could not be read"]


def _facts(task: Task) -> str:
    """What writer and reviews are told: the plain instruction, the calls, the outputs, persona."""
    persona = phrases.PERSONAS[task.persona].words if task.persona else "none in particular"
    return json.dumps({
        "plain instruction": task.instruction,
        "manner of speaking": persona,
        "calls of the right solution": [call.to_json() for call in task.gold_calls],
        "what the customer must be told": list(task.outputs),
    }, indent=1)


def _verbatim(task: Task) -> list[str]:
    """What must stand in the text to the letter."""
    if task.script is None:
        return []
    script = Script.from_json(task.script)
    known = script.email if script.identify == "email" else script.zip
    wishes = [w for r in script.requests for w in (r, r.then) if w]
    words = [known, *(x for w in wishes for x in (w.order_id, w.option))]
    return list(dict.fromkeys(word for word in words if word))


def _object(text: str) -> dict[str, Any]:
    """The JSON object that a model's answer is or holds; empty if there is none."""
    start, end = text.find("{"), text.rfind("}")
    try:
        found = loads(text[start : end + 1])
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
