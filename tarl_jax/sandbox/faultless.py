"""The shortest dialogue in which a faultless agent does all that a published task asks.

Published tasks give the calls of a solution and no dialogue. Here they are played in the sandbox,
in their order, between the turns that every policy of these domains asks for: the user is looked
up, each record that a call names is read before it, each write is proposed and confirmed, and what
was asked is told at the end. Nothing is asked twice, and no turn thinks aloud:
a real dialogue has at least as many turns, and more tokens.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from typing import Any

from tarl_jax.sandbox.dialogue import brief
from tarl_jax.sandbox.domain import Domain, Refusal, State, Tool
from tarl_jax.sandbox.phrases import STOP
from tarl_jax.sandbox.starts import start_of
from tarl_jax.types import Call, Task

# Tools that find a user, and where its record has what they ask for.
_FIND: dict[str, dict[str, tuple[str, ...]]] = {
    "find_user_id_by_email": {"email": ("email",)},
    "find_user_id_by_name_zip": {
        "first_name": ("name", "first_name"), "last_name": ("name", "last_name"),
        "zip": ("address", "zip"),
    },
}


@dataclasses.dataclass(frozen=True)
class Turn:
    """What the agent does, and the tool's or the user's answer."""

    action: Call | str
    answer: str


def faultless_dialogue(
    domain: Domain, task: Task, brief_writes: bool = False
) -> tuple[str, list[Turn]]:
    """The user's opening, and the agent's turns in order.

    The opening is the task's instruction: a language model says of it what it was told to.

    Args:
      brief_writes: as in `Dialogue`.
    """
    play = _Play(domain, task, brief_writes)
    play.look_up_user()
    for call, requestor in _solution(task):
        if requestor != "assistant":
            play.say(f"Please do this on your side: {_words(call)}.", "Done. What now?")
            continue
        play.look_up(call)
        tool = domain.tools.get(call.name)
        if tool and tool.write:
            play.say(f"I can do this: {_words(call)}. Shall I go ahead? (yes or no)", "Yes.")
        play.call(call)
    told = f" You asked for: {', '.join(task.outputs)}." if task.outputs else ""
    play.say(f"That is done.{told} Is there anything else that I can help you with?", STOP)
    return task.instruction, play.turns


def _solution(task: Task) -> Iterator[tuple[Call, str]]:
    """All calls that the task gives, with who makes each."""
    if task.actions is None:
        yield from ((call, "assistant") for call in task.gold_calls)
    else:
        yield from ((Call(a.name, a.kwargs), a.requestor) for a in task.actions)


def _words(call: Call) -> str:
    """The call as a message lists it."""
    details = "; ".join(
        f"{name.replace('_', ' ')}: {value if isinstance(value, str) else json.dumps(value)}"
        for name, value in call.kwargs.items()
    )
    return f"{call.name.replace('_', ' ')} ({details})"


class _Play:
    """A dialogue in the making: its turns, its state, and what has been read so far."""

    def __init__(self, domain: Domain, task: Task, brief_writes: bool):
        self._brief = brief_writes
        self.turns: list[Turn] = []
        self._domain = domain
        self._task = task
        self._state: State = start_of(domain, task.initial_state, task.task_id)
        self._called: set[str] = set()
        self._read: set[str] = set()  # every text and number in what tools answered
        products = domain.database.get("products", {})
        self._variants = {variant: key for key in products
                          for variant in _at(products, (key, "variants")) or ()}

    def say(self, message: str, answer: str) -> None:
        self.turns.append(Turn(message, answer))

    def call(self, call: Call) -> None:
        """Makes the call, unless it was made and only reads."""
        key = json.dumps(call.to_json(), sort_keys=True, default=str)
        tool = self._domain.tools.get(call.name)
        if key in self._called and not (tool and tool.write):
            return
        self._called.add(key)
        answer = self._domain.call(self._state, call.name, dict(call.kwargs))
        try:
            self._read |= set(_texts(json.loads(answer)))
        except ValueError:
            self._read.add(answer)
        written = tool is not None and tool.write and not isinstance(answer, Refusal)
        self.turns.append(Turn(call, brief(answer) if written and self._brief else answer))

    def look_up_user(self) -> None:
        """Finds the user as the domain's policy asks, and reads its record."""
        key = self._task.user_id
        record = self._record("users", key)
        if record is None:
            return
        for name, places in _FIND.items():
            found = {argument: _at(record, place) for argument, place in places.items()}
            known = all(str(value) in self._task.instruction for value in found.values())
            last = name == list(_FIND)[-1] and None not in found.values()
            if name in self._domain.tools and (known or last):
                self.call(Call(name, found))
                break
        self._read_record("users", key)

    def look_up(self, call: Call) -> None:
        """Reads the records that the call names, and what it takes out of a catalogue."""
        for record in _records(call.kwargs):
            for name, value in record.items():
                table = name.removesuffix("_id") + "s"
                if name.endswith("_id") and isinstance(value, str) and self._record(table, value):
                    self._read_record(table, value)
            if "flight_number" in record and "date" in record:
                self._search(str(record["flight_number"]), str(record["date"]))
        for text in dict.fromkeys(_texts(dict(call.kwargs))):
            product = self._variants.get(text)
            if product and text not in self._read:
                self._read_record("products", product)

    def _search(self, number: str, date: str) -> None:
        """Finds a flight that no answer has told yet."""
        flight, search = self._record("flights", number), "search_direct_flight"
        if flight and search in self._domain.tools and number not in self._read:
            place = {name: flight[name] for name in ("origin", "destination")}
            self.call(Call(search, {**place, "date": date}))

    def _record(self, table: str, key: str) -> Any:
        records = self._domain.database.get(table)
        return records.get(key) if isinstance(records, dict) else None

    def _read_record(self, table: str, key: str) -> None:
        tool = self._reader(table)
        if tool:
            self.call(Call(tool.name, {tool.schema["function"]["parameters"]["required"][0]: key}))

    def _reader(self, table: str) -> Tool | None:
        """The tool that reads a record of the table by its key."""
        wanted = f"get_{table.removesuffix('s')}_details"
        tool = self._domain.tools.get(wanted)
        alone = tool and len(tool.schema["function"]["parameters"]["required"]) == 1
        return tool if alone else None


def _records(kwargs: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The arguments, and every object in their lists."""
    yield kwargs
    for value in kwargs.values():
        if isinstance(value, list):
            yield from (inner for inner in value if isinstance(inner, dict))


def _texts(value: Any) -> Iterator[str]:
    """Every text and number inside, keys included."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield str(key)
            yield from _texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)
    elif isinstance(value, str | int | float) and not isinstance(value, bool):
        yield str(value)


def _at(record: Any, place: tuple[str, ...]) -> Any:
    """What stands there; None where nothing does."""
    for name in place:
        record = record.get(name) if isinstance(record, dict) else None
    return record
