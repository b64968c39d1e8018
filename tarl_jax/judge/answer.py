"""Reading what a language model answers as a judge: nothing is guessed, nothing is filled in."""

from __future__ import annotations

from typing import Annotated, Any, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from tarl_jax.judge.rules import Judgement

_SHOWN = 3  # problems of an answer that are told at once


def _asks_for_all(schema: dict[str, Any]) -> None:
    """What may be missing in a recorded answer is asked of a new one."""
    schema["required"] = list(schema["properties"])
    for field in schema["properties"].values():
        field.pop("default", None)


class Grade(BaseModel):
    """One turn's; the reason first, so that it is thought of before the score.

    minor: of a 0, that it is a minor issue. Answers from before there were such have none.
    """

    model_config = ConfigDict(extra="forbid", strict=True, json_schema_extra=_asks_for_all)

    turn: int
    reason: str
    score: Annotated[int, Field(ge=-1, le=1)]
    minor: bool = False

    @model_validator(mode="after")
    def _only_zeros_are_minor(self) -> Self:
        if self.minor and self.score != 0:
            raise ValueError(f"minor is true with a score of {self.score}: only with 0")
        return self


class Grades(BaseModel):
    """An answer; its JSON schema is sent with the request."""

    model_config = ConfigDict(extra="forbid", strict=True)

    turns: list[Grade]


def read(text: str, turns: int) -> Judgement:
    """The judgement in an answer about `turns` turns.

    Raises ValueError, saying what is wrong in words that the model can use: no JSON of this form, a
    score outside -1, 0, +1, another one than 0 called minor, or not exactly one entry per turn in
    order.
    """
    try:
        grades = Grades.model_validate_json(text).turns
    except ValidationError as error:
        problems = error.errors(include_url=False, include_input=False, include_context=False)
        told = "; ".join(
            ": ".join(filter(None, (".".join(map(str, p["loc"])), p["msg"])))
            for p in problems[:_SHOWN]
        )
        raise ValueError(told) from None
    numbers = [grade.turn for grade in grades]
    if numbers != list(range(turns)):
        raise ValueError(f"turns: there should be one entry for each turn from 0 to {turns - 1},"
                         f" in order; there are {len(numbers)}, numbered {numbers}")
    return Judgement(
        [grade.score for grade in grades], [grade.reason for grade in grades],
        [grade.minor for grade in grades],
    )


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
