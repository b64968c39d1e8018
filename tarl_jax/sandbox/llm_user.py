"""A user that is played by a language model, told the task's hidden instruction and nothing else.

Strategies and protocol are tau-bench's (arXiv 2406.12045): the user opens the dialogue in answer to
a greeting, and ends it by `###STOP###`. Unlike there, what the model thinks can never reach the
agent: an answer whose message cannot be told from the thought is asked for again, and never passed
on as it is.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any, TypeVar

from tarl_jax.config import UserConfig
from tarl_jax.config.plain import loads, without_thoughts
from tarl_jax.llm.errors import LLMError
from tarl_jax.llm.service import Answers, ChatService
from tarl_jax.llm.transport import Completion
from tarl_jax.sandbox import phrases
from tarl_jax.sandbox.user import Reply
from tarl_jax.types import Task

GREETING = "Hi! How can I help you today?"  # what the user's first message answers
TRIES = 3  # at an answer that can be read, and at a message that is found good
_PROMPTS = Path(__file__).parent / "prompts"
# Whatever a model puts around it ("**Thought:**", "- User_Response :").
_LABEL = re.compile(r"(?<![a-z])(thoughts?|user[ _]response|reflection)[\W_]{0,4}?:[*_ ]*", re.I)
_VERDICT = re.compile(r"^[^\w\n]*verdict[^\w\n]+(good|bad)[^\w\n]*$", re.I | re.M)

T = TypeVar("T")


def system_prompt(instruction: str, strategy: str, tools: bool = False) -> str:
    """What a user is told before the dialogue; tools: whether it has any."""
    text = _prompt("user", instruction=instruction)
    if tools:
        text += _prompt("tools")
    return text + (_prompt("react") if strategy == "react" else "")


class LLMUser:
    """The user of one episode. Its methods raise LLMError where it cannot be played on.

    instruction: the task's hidden text.
    key: of the episode; the answers that a recording holds are told apart by it.
    kept: its answers, where the episode may be played again after a kill.
    tools: OpenAI function schemas of what the user can do beside speaking, once `take` has given
      the means. It may call them before each of its messages; the agent sees neither call nor
      answer, nor what is said beside a call.
    """

    def __init__(
        self, instruction: str, service: ChatService, config: UserConfig, key: str,
        tools: Sequence[Mapping[str, Any]] = (), kept: Answers | None = None,
    ):
        self._instruction = instruction
        self._service = service
        self._config = config
        self._key = key
        self._kept = kept
        self._calls = 0
        self._seconds = 0.0
        system = system_prompt(instruction, config.strategy, bool(tools))
        # From the model's side: it is the assistant, the agent writes to it.
        self._messages: list[dict[str, Any]] = [{"role": "system", "content": system}]
        self._transcript: list[str] = []
        self._tools = tools
        self._act: Callable[[str, Mapping[str, Any]], str] | None = None
        self._acts = 0

    @property
    def at_once(self) -> bool:
        """Whether it answers from a recording, so that nobody waits for it."""
        return bool(self._config.llm.replay)

    def take(self, act: Callable[[str, Mapping[str, Any]], str]) -> None:
        """Gives the user its tools: what makes a call and answers it."""
        self._act = act

    def opening(self) -> str:
        """The first message."""
        return self._next(GREETING, opening=True).text

    def reply(self, message: str) -> Reply:
        """Answers an agent's message."""
        return self._next(message)

    def _next(self, message: str, opening: bool = False) -> Reply:
        self._messages.append({"role": "user", "content": message})
        self._transcript.append(f"Agent: {message}")
        before = self._calls

        def read(text: str) -> tuple[str, str]:
            said = message_in(text, labelled=self._config.strategy == "react")
            if opening and any(word in said for word in phrases.STOPS):
                raise ValueError("ends the dialogue before it began")
            return text, said

        whole, said = self._ask(self._messages, read)
        if self._config.strategy in ("verify", "reflection"):
            said = self._supervised(said, read)
        # A model that thinks spoken goes on from its thoughts; the agent sees the message alone.
        kept = whole if self._config.strategy == "react" else said
        self._messages.append({"role": "assistant", "content": kept})
        self._transcript.append(f"Customer: {said}")
        info = {"calls": self._calls - before}
        return Reply(said, info | ({"model_text": kept} if kept != said else {}))

    def _supervised(self, said: str, read: Callable[[str], tuple[str, str]]) -> str:
        """The message, or a better one, as far as a second call finds it bad; the last of TRIES."""
        for _ in range(TRIES - 1):
            shown = {"instruction": self._instruction, "response": said,
                     "transcript": "\n".join(self._transcript)}
            good, reason = self._ask(_asked("verify", **shown), _verdict)
            if good:
                break
            if self._config.strategy == "verify":
                _, said = self._ask(self._messages, read)
            else:
                better = _asked("reflect", **shown, reason=reason)
                _, said = self._ask(better, lambda text: read(message_in(text, labelled=True)))
        return said

    def _ask(self, messages: list[dict[str, str]], read: Callable[[str], T]) -> T:
        """What `read` makes of the model's answer; asks again where it raises ValueError."""
        reason: Exception | None = None
        unread = 0
        while unread < TRIES:
            if self._calls >= self._config.max_calls:
                raise LLMError(
                    "episode_budget", f"the user has made config.user.max_calls ="
                    f" {self._config.max_calls} calls in this episode; raise it for longer ones"
                )
            self._calls += 1
            begun = time.monotonic()
            tools = self._tools if self._act and messages is self._messages else ()
            try:
                completion = self._service.complete(
                    messages, key=f"{self._key}/{self._calls}",
                    deadline=begun + self._config.max_seconds - self._seconds,
                    tools=tools, kept=self._kept,
                )
            finally:
                self._seconds += time.monotonic() - begun
            if tools and completion.calls:
                self._perform(completion)
                continue
            try:
                return read(completion.text)
            except ValueError as error:
                reason = error
                unread += 1
                self._service.ledger.add(unusable=1)
        raise LLMError("malformed", f"{self._config.llm.model}: {TRIES} answers in a row could not"
                       f" be read; the last one {reason}")


    def _perform(self, completion: Completion) -> None:
        """Makes the calls that the model asks for, and tells it what they answer."""
        assert self._act is not None
        asked, answers = [], []
        for call in completion.calls:
            self._acts += 1  # ids of our own: a server's are new each time, and would be recorded
            made = {"id": f"call_{self._acts}", "type": "function", "function": dict(call)}
            asked.append(made)
            try:
                arguments = loads(call["arguments"])
                if not isinstance(arguments, dict):
                    raise ValueError
                answer = self._act(call["name"], arguments)
            except ValueError:
                answer = "Error: the arguments are no JSON object"
                self._service.ledger.add(unusable=1)
            answers.append({"role": "tool", "tool_call_id": made["id"], "content": answer})
        self._messages += [
            {"role": "assistant", "content": completion.text or None, "tool_calls": asked}, *answers
        ]


def message_in(text: str, labelled: bool) -> str:
    """The message to the agent in a model's answer; of what it thought, nothing.

    labelled: the message is what follows "User Response:".
    Raises ValueError where that cannot be told for sure: the label is not there, or several times,
    or another one comes after it; a `<think>` is unfinished; there is no message at all.
    """
    said = without_thoughts(text)
    if re.search(r"</?think", said, re.I):
        raise ValueError("has an unfinished <think>")
    labels = list(_LABEL.finditer(said))
    if labelled:
        names = [label[1].lower().replace("_", " ") for label in labels]
        if names.count("user response") != 1 or names[-1] != "user response":
            raise ValueError("does not end with one 'User Response:'")
        said = said[labels[-1].end():]
    elif labels:
        raise ValueError(f"has a {labels[0][0].strip()!r}")
    if not said.strip():
        raise ValueError("has no message")
    return said.strip()


def _verdict(text: str) -> tuple[bool, str]:
    """(whether the message is good, why). Raises ValueError where it says neither, or both."""
    found = {word.lower() for word in _VERDICT.findall(text)}
    if len(found) != 1:
        raise ValueError("has no line 'Verdict: good' or 'Verdict: bad'")
    return found == {"good"}, _VERDICT.sub("", text).strip()


def _asked(name: str, **values: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": _prompt(name, **values)}]


def _prompt(name: str, **values: str) -> str:
    template = Template((_PROMPTS / f"{name}.txt").read_text("utf-8"))
    return template.substitute(values, stop=phrases.STOP)


class LLMUsers:
    """The language model behind all users of a run. Close it at the end."""

    def __init__(self, config: UserConfig):
        self._config = config
        self._service = ChatService(config.llm, "user.llm")

    def check(self) -> None:
        """Raises LLMError where the model cannot be asked (no key, no package)."""
        self._service.check()

    def user(
        self, task: Task, seed: int, tools: Sequence[Mapping[str, Any]] = (),
        kept: Answers | None = None,
    ) -> LLMUser:
        """The user of one episode, with the tools of these schemas."""
        key = f"{task.task_id}/{seed}"
        return LLMUser(task.instruction, self._service, self._config, key, tools, kept)

    def counts(self) -> dict[str, float]:
        """What was asked since the last time, by the names of `llm.ledger.COUNTS`."""
        return self._service.ledger.take()

    def close(self) -> None:
        """Ends what is under way."""
        self._service.close()
