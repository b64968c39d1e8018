"""Records with typed fields, read and refused as τ²-bench's pydantic models do.

τ² holds its database in pydantic models. What that changes is visible to the agent and in the hash:
numbers become floats where a field says so, fields that are absent become null, unknown ones are
dropped, and a tool that builds a record of arguments refuses them in pydantic's words. A `Model` is
such a type; `Model.read` builds the record.

A kind is a function (value, where, problems) -> value: it returns the value as the field holds it,
or appends a line to `problems`.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

from tarl_jax.sandbox.domain import Record, ToolError

Where = tuple[str | int, ...]
Kind = Callable[[Any, Where, list[str]], Any]

_URL = "https://errors.pydantic.dev/2.14/v/"
_MAX_SHOWN = 50  # bytes of a value in a message
_INTEGER = re.compile(r"[+-]?\d+(_\d+)*(\.0+)?", re.ASCII)
_MAX_DIGITS = 4300  # of an integer in a text
_MAX_FLOAT = 2.0**63  # of one that stands for an integer
_TOO_LARGE = "Unable to parse input string as an integer, exceeded maximum size"
_BOOLEANS = {
    **dict.fromkeys(("true", "t", "yes", "y", "on", "1", 1), True),
    **dict.fromkeys(("false", "f", "no", "n", "off", "0", 0), False),
}


def _problem(problems: list[str], where: Where, kind: str, text: str, value: Any) -> None:
    shown = repr(value)
    if len(whole := shown.encode("utf-8", "replace")) > _MAX_SHOWN:  # cut between characters
        shown = "...".join(part.decode("utf-8", "ignore") for part in (whole[:25], whole[-24:]))
    place = ".".join(map(str, where))
    problems.append(
        f"{place}\n  {text} [type={kind}, input_value={shown}, input_type={type(value).__name__}]"
        f"\n    For further information visit {_URL}{kind}"
    )


def text(value: Any, where: Where, problems: list[str]) -> Any:
    if not isinstance(value, str):
        _problem(problems, where, "string_type", "Input should be a valid string", value)
    return value


def flag(value: Any, where: Where, problems: list[str]) -> Any:
    if not isinstance(value, bool):
        _problem(problems, where, "bool_type", "Input should be a valid boolean", value)
    return value


def boolean(value: Any, where: Where, problems: list[str]) -> Any:
    """A boolean; also of 0, 1, or a text that says yes or no."""
    should = "Input should be a valid boolean"
    if isinstance(value, str | int) or (isinstance(value, float) and value.is_integer()):
        known = value.lower() if isinstance(value, str) else value
        if known in _BOOLEANS:
            return _BOOLEANS[known]
        should += ", unable to interpret input"
        _problem(problems, where, "bool_parsing", should, value)
    else:
        _problem(problems, where, "bool_type", should, value)
    return value


def day(value: Any, where: Where, problems: list[str]) -> Any:
    """A date, held as "2025-02-01"; also of a date as TOML reads it."""
    return _moment(date, value, where, problems)


def time(value: Any, where: Where, problems: list[str]) -> Any:
    """A date with a time, held as "2025-01-20 14:30:00"."""
    return _moment(datetime, value, where, problems)


def _moment(
    kind: type[date] | type[datetime], value: Any, where: Where, problems: list[str]
) -> Any:
    try:
        return str(value if type(value) is kind else kind.fromisoformat(value))
    except (TypeError, ValueError):
        name = f"{kind.__name__}_type"
        _problem(problems, where, name, f"Input should be a valid {kind.__name__}", value)
    return value


def integer(value: Any, where: Where, problems: list[str]) -> Any:
    """A whole number; also of a float without a fraction, a text of digits, or a boolean."""
    should = "Input should be a valid integer"
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            _problem(problems, where, "finite_number", "Input should be a finite number", value)
        elif value != int(value):
            should += ", got a number with a fractional part"
            _problem(problems, where, "int_from_float", should, value)
        elif abs(value) >= _MAX_FLOAT:
            _problem(problems, where, "int_parsing_size", _TOO_LARGE, value)
        else:
            return int(value)
    elif isinstance(value, str):
        stripped = value.strip()
        if len(stripped) > _MAX_DIGITS:
            _problem(problems, where, "int_parsing_size", _TOO_LARGE, value)
        elif _INTEGER.fullmatch(stripped):
            return int(stripped.partition(".")[0])
        else:
            should += ", unable to parse string as an integer"
            _problem(problems, where, "int_parsing", should, value)
    else:
        _problem(problems, where, "int_type", should, value)
    return value


def number(value: Any, where: Where, problems: list[str]) -> Any:
    """A float; also of an int, a text that is one, or a boolean."""
    should = "Input should be a valid number"
    if isinstance(value, int | float):
        try:
            return float(value)
        except OverflowError:
            return math.copysign(math.inf, value)
    if isinstance(value, str):
        digits = value.strip()
        try:
            if not digits.isascii() or "__" in digits or digits[:1] == "_" or digits[-1:] == "_":
                raise ValueError
            return float(digits.replace("_", ""))
        except ValueError:
            should += ", unable to parse string as a number"
            _problem(problems, where, "float_parsing", should, value)
    else:
        _problem(problems, where, "float_type", should, value)
    return value


def choice(*choices: str, kind: str = "literal_error") -> Kind:
    """One of these texts. kind: "enum" where the benchmark's type is an enumeration."""
    *first, last = map(repr, choices)
    should = f"Input should be {', '.join(first)} or {last}" if first else f"Input should be {last}"

    def read(value: Any, where: Where, problems: list[str]) -> Any:
        if not isinstance(value, str) or value not in choices:
            _problem(problems, where, kind, should, value)
        return value

    return read


def optional(kind: Kind, default: Any = None) -> Kind:
    """The kind or null; a field of it may be absent, and is `default` then."""
    return absent(default, lambda value, where, problems: (
        None if value is None else kind(value, where, problems)
    ))


def absent(default: Any, kind: Kind) -> Kind:
    """The kind; a field of it may be absent, and is `default` then."""

    def read(value: Any, where: Where, problems: list[str]) -> Any:
        return kind(value, where, problems)

    read.default = default  # type: ignore[attr-defined]
    return read


def list_of(kind: Kind) -> Kind:
    def read(value: Any, where: Where, problems: list[str]) -> Any:
        if isinstance(value, list | tuple):
            return [kind(item, (*where, at), problems) for at, item in enumerate(value)]
        _problem(problems, where, "list_type", "Input should be a valid list", value)
        return value

    return read


def dict_of(kind: Kind) -> Kind:
    """An object with any keys."""

    def read(value: Any, where: Where, problems: list[str]) -> Any:
        if isinstance(value, Mapping):
            return {
                text(key, (*where, key, "[key]"), problems): kind(item, (*where, key), problems)
                for key, item in value.items()
            }
        _problem(problems, where, "dict_type", "Input should be a valid dictionary", value)
        return value

    return read


def tagged(tag: str, models: Mapping[str, Model]) -> Kind:
    """One of several models, told apart by the text in a field."""

    def read(value: Any, where: Where, problems: list[str]) -> Any:
        name = value.get(tag) if isinstance(value, Mapping) else None
        model = models.get(name) if isinstance(name, str) else None
        if model is None:
            choice(*models)(name, (*where, tag), problems)
            return value
        return model(value, where, problems)

    return read


@dataclass(frozen=True)
class Model:
    """A record's type: its name in messages, and its fields in the order in which it is shown.

    extra: whether fields that it does not know are dropped, or refused.
    """

    name: str
    fields: Mapping[str, Kind]
    extra: bool = True

    def __call__(self, value: Any, where: Where, problems: list[str]) -> Any:
        if not isinstance(value, Mapping):
            should = f"Input should be a valid dictionary or instance of {self.name}"
            _problem(problems, where, "model_type", should, value)
            return value
        record = {}
        for field, kind in self.fields.items():
            if field in value:
                record[field] = kind(value[field], (*where, field), problems)
            elif hasattr(kind, "default"):
                record[field] = copy.deepcopy(kind.default)
            else:
                _problem(problems, (*where, field), "missing", "Field required", value)
        for field in [] if self.extra else [name for name in value if name not in self.fields]:
            should = "Extra inputs are not permitted"
            _problem(problems, (*where, field), "extra_forbidden", should, value[field])
        return record

    def read(self, values: Mapping[str, Any]) -> Record:
        """The record of these values. Raises ToolError, in pydantic's words, where they are not
        such a record."""
        problems: list[str] = []
        record = self(values, (), problems)
        if problems:
            count = f"{len(problems)} validation error{'s' * (len(problems) > 1)}"
            raise ToolError("\n".join([f"{count} for {self.name}", *problems]))
        return record
