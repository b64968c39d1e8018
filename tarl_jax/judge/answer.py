"""Reading what a language model answers as a judge: any wrapping, but no grade is guessed.

Servers differ in what stands around the JSON (a thought, a fence, a sentence) and in how a number
is written; which turn has which grade is told exactly or the answer is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Annotated, Any, Self, TypeVar

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError, model_validator

from tarl_jax.config.plain import loads, without_thoughts
from tarl_jax.judge.rules import Judgement
from tarl_jax.judge.user_rules import Kind

M = TypeVar("M", bound=BaseModel)

_SHOWN = 3  # problems of an answer that are told at once
_STARTS = 200  # brackets at which an answer's JSON is looked for
_BRACKET = re.compile(r"[{\[]")
_PLUS = re.compile(r"(:\s*)\+(?=\d)")  # +1 is no number of JSON
_NUMBER = re.compile(r"\s*([+-]?\d+)(?:\.0+)?\s*")
_WORDS = {"true": True, "false": False}


def _closed(schema: dict[str, Any]) -> None:
    """As servers take a strict schema: nothing else is let in, all is asked for, no defaults.

    What may be missing in a recorded answer is asked of a new one.
    """
    schema["additionalProperties"] = False
    schema["required"] = list(schema["properties"])
    for field in schema["properties"].values():
        field.pop("default", None)


def _whole(value: Any) -> Any:
    """1, 1.0, "1" and "+1" as 1; anything else as it is."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str) and (found := _NUMBER.fullmatch(value)):
        return int(found[1])
    return value


def _grade(value: Any) -> Any:
    value = _whole(value)
    if isinstance(value, int) and not -1 <= value <= 1:
        raise ValueError("should be -1, 0 or 1")
    return value


def _word(value: Any) -> Any:
    """"Early end" as early_end; anything else as it is."""
    return re.sub(r"[\s-]+", "_", value.strip().lower()) if isinstance(value, str) else value


def _truth(value: Any) -> Any:
    """"true" as true; anything else as it is."""
    return _WORDS.get(value.strip().lower(), value) if isinstance(value, str) else value


def _flag(value: Any) -> Any:
    """The same, and null as false."""
    return False if value is None else _truth(value)


class Grade(BaseModel):
    """One turn's; the reason first, so that it is thought of before the score.

    minor: of a 0, that it is a minor issue. Answers from before there were such have none.
    """

    model_config = ConfigDict(extra="ignore", strict=True, json_schema_extra=_closed)

    turn: Annotated[int, BeforeValidator(_whole)]
    reason: str
    # No bounds: several servers refuse a schema that has some.
    score: Annotated[int, BeforeValidator(_grade)]
    minor: Annotated[bool, BeforeValidator(_flag)] = False

    @model_validator(mode="after")
    def _only_zeros_are_minor(self) -> Self:
        if self.minor and self.score != 0:
            raise ValueError(f"minor is true with a score of {self.score}: only with 0")
        return self


class Grades(BaseModel):
    """An answer; its JSON schema is sent with the request."""

    model_config = ConfigDict(extra="ignore", strict=True, json_schema_extra=_closed)

    turns: list[Grade]


class Outcome(BaseModel):
    """Whether one thing that was expected of the agent came about."""

    model_config = ConfigDict(extra="ignore", strict=True, json_schema_extra=_closed)

    expectedOutcome: str
    reasoning: str
    metExpectation: Annotated[bool, BeforeValidator(_truth)]


class Outcomes(BaseModel):
    """An answer about what was expected, in the form that tau2-bench's reader gives."""

    model_config = ConfigDict(extra="ignore", strict=True, json_schema_extra=_closed)

    results: list[Outcome]


class UserFault(BaseModel):
    """One message of a user that was played wrongly. turn: which of the agent's it answers."""

    model_config = ConfigDict(extra="ignore", strict=True, json_schema_extra=_closed)

    turn: Annotated[int, BeforeValidator(_whole)]
    kind: Annotated[Kind, BeforeValidator(_word)]
    reason: str


class UserFaults(BaseModel):
    """An answer about a user; its JSON schema is sent with the request."""

    model_config = ConfigDict(extra="ignore", strict=True, json_schema_extra=_closed)

    faults: list[UserFault]


def read(text: str, turns: int) -> Judgement:
    """The judgement in an answer about `turns` turns.

    Raises ValueError, saying what is wrong in words that the model can use: no JSON of this form,
    or several that differ, a score outside -1, 0, +1, another one than 0 called minor, or not
    exactly one entry per turn in order.
    """
    grades = _read(text, Grades, "turns", "score").turns
    numbers = [grade.turn for grade in grades]
    if numbers != list(range(turns)):
        raise ValueError(f"turns: there should be one entry for each turn from 0 to {turns - 1},"
                         f" in order; there are {len(numbers)}, numbered {numbers}")
    return Judgement(
        [grade.score for grade in grades], [grade.reason for grade in grades],
        [grade.minor for grade in grades],
    )


def read_faults(text: str, turns: int) -> list[str]:
    """The faults of the user in an answer about `turns` turns, as "kind: reason".

    Raises ValueError as `read`, and for a turn that there is not.
    """
    faults = _read(text, UserFaults, "faults", "kind").faults
    for fault in faults:
        if not -1 <= fault.turn < turns:
            raise ValueError(f"faults: turn {fault.turn}: there are those from -1 to {turns - 1}")
    return [f"{fault.kind}: {fault.reason}" for fault in faults]


def read_outcomes(text: str, expected: Sequence[str]) -> list[bool]:
    """Whether each thing that was `expected` came about; told apart by their words, or in order.

    Raises ValueError as `read`, and where there is not one entry for each.
    """
    results = _read(text, Outcomes, "results", "metExpectation").results
    if len(results) != len(expected):
        raise ValueError(f"results: there should be one entry for each of the {len(expected)}"
                         f" expected outcomes; there are {len(results)}")
    by_words = {result.expectedOutcome.strip(): result.metExpectation for result in results}
    if by_words.keys() == {text.strip() for text in expected}:
        return [by_words[text.strip()] for text in expected]
    return [result.metExpectation for result in results]


def _read(text: str, model: type[M], field: str, mark: str) -> M:
    """The answer of one form in a text; mark: what each entry of its list holds."""
    try:
        return model.model_validate(_found(without_thoughts(text), field, mark))
    except ValidationError as error:
        problems = error.errors(include_url=False, include_input=False, include_context=False)
        told = "; ".join(
            ": ".join(filter(None, (".".join(map(str, p["loc"])), p["msg"])))
            for p in problems[:_SHOWN]
        )
        raise ValueError(told) from None


def _found(text: str, field: str, mark: str) -> Any:
    """The answer in a text: all of it, or the one JSON in it that is of the form."""
    problem = ""
    for written in dict.fromkeys((text, _PLUS.sub(r"\1", text))):
        try:
            return _as_object(loads(written.strip()), field)
        except ValueError as error:
            problem = problem or str(error)
        values = (_as_object(value, field) for value in _values(written))
        found = [value for value in values if _has_entries(value, field, mark)]
        if found and all(value == found[0] for value in found):
            return found[0]
        if found:
            raise ValueError("it holds several answers, which differ")
    raise ValueError(f"Invalid JSON: {problem}")


def _as_object(value: Any, field: str) -> Any:
    """A list alone as the field of an answer."""
    return {field: value} if isinstance(value, list) else value


def _has_entries(value: Any, field: str, mark: str) -> bool:
    entries = value.get(field) if isinstance(value, dict) else None
    return isinstance(entries, list) and all(isinstance(e, dict) and mark in e for e in entries)


def _values(text: str) -> list[Any]:
    """The JSON objects and lists that stand in a text, outermost ones."""
    found: list[Any] = []
    decoder, place = json.JSONDecoder(), 0
    for _ in range(_STARTS):
        start = _BRACKET.search(text, place)
        if start is None:
            break
        try:
            _, place = decoder.raw_decode(text, start.start())
            found.append(loads(text[start.start() : place]))
        except (ValueError, RecursionError):
            place = max(place, start.start() + 1)
    return [value for value in found if value]


def without_knock_ons(judgement: Judgement, max_majors: int) -> tuple[Judgement, int]:
    """The judgement with every -1 after the first `max_majors` as a 0 that is not minor, and how
    many those were.

    The rubric asks for that, since what follows from a deviation is not another one; models forget.
    """
    majors = np.cumsum(np.array(judgement.scores) == -1)
    scores, notes = [], []
    for score, note, so_far in zip(judgement.scores, judgement.notes, majors, strict=True):
        knock_on = score == -1 and so_far > max_majors
        scores.append(0 if knock_on else score)
        notes.append(f"{note} (a knock-on, given as -1)" if knock_on else note)
    found = Judgement(scores, notes, judgement.minors)
    return found, judgement.scores.count(-1) - scores.count(-1)
