"""Every field of the config with its type, default and sentence; and overrides from text.

A sentence stands where a reader of the config's files finds it: behind `# ` on the field's line, or
in the docstring of its group, as a paragraph `name: sentence` (or `name, name: sentence`).
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import inspect
import io
import re
import textwrap
import tokenize
import typing
from collections.abc import Iterable, Mapping
from typing import Any

from tarl_jax.config.errors import ConfigError
from tarl_jax.config.run import RunConfig

_ENTRY = re.compile(r"\w+(?:, \w+)*: ")
_BOOLS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


@dataclasses.dataclass(frozen=True)
class Field:
    """One knob.

    key: as in `--config.KEY`. kind: int, float, bool, str or a tuple of floats or strings.
    """

    key: str
    kind: Any
    default: Any
    sentence: str

    @property
    def kind_name(self) -> str:
        if self.kind in (int, float, bool, str):
            return self.kind.__name__
        return "strings" if self.kind == tuple[str, ...] else "numbers"


def fields(config: RunConfig | None = None) -> dict[str, Field]:
    """All of them by key, in the order of the config; defaults are those of `config`."""
    return {field.key: field for field in _walk(config or RunConfig(), "")}


def _walk(group: Any, prefix: str) -> Iterable[Field]:
    hints, said = typing.get_type_hints(type(group)), _sentences(type(group))
    for field in dataclasses.fields(group):
        value = getattr(group, field.name)
        if dataclasses.is_dataclass(value):
            yield from _walk(value, f"{prefix}{field.name}.")
        else:
            sentence = said.get(field.name, "")
            yield Field(f"{prefix}{field.name}", hints[field.name], value, sentence)


def _sentences(group: type) -> dict[str, str]:
    """What the source of a group says of each of its fields."""
    source = textwrap.dedent(inspect.getsource(group))
    comments = {
        token.start[0]: token.string.removeprefix("#").strip()
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    said = {
        name: entry.partition(": ")[2]
        for entry in _entries(inspect.getdoc(group) or "")
        for name in entry.partition(": ")[0].split(", ")
    }
    (body,) = ast.parse(source).body
    assert isinstance(body, ast.ClassDef)
    for node in body.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            comment = comments.get(node.lineno) or comments.get(node.end_lineno or 0)
            if comment:
                # What the docstring says of several fields together, and then of this one.
                before = said.get(node.target.id, "").rstrip(".")
                said[node.target.id] = f"{before}; {comment}" if before else comment
    return said


def _entries(doc: str) -> Iterable[str]:
    """The paragraphs `name: …` of a docstring, each as one line."""
    entry = ""
    for line in [*doc.splitlines(), ""]:
        if line.startswith("  ") and entry:
            entry += " " + line.strip()
            continue
        if entry:
            yield entry
        entry = line if _ENTRY.match(line) else ""


def described(width: int) -> str:
    """All fields as text: `--config.KEY=DEFAULT`, then type and sentence; lines of `width`."""
    lines = ["fields of the config, each with its default (the embedded run's):"]
    group = ""
    for key, field in fields().items():
        if key.rpartition(".")[0] != group:
            group = key.rpartition(".")[0]
            lines.append("")
        lines.append(f"  --config.{key}={shown(field.default)}")
        sentence = f"({field.kind_name}) {field.sentence.rstrip('.')}."
        lines += textwrap.wrap(sentence, width, initial_indent="      ", subsequent_indent="      ",
                               break_on_hyphens=False)
    return "\n".join(lines)


def shown(value: Any) -> str:
    """A value as it is written behind `--config.KEY=`."""
    if isinstance(value, tuple):
        return ",".join(map(shown, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def nearest(key: str) -> str:
    """How to go on with a key that is none: "did you mean …", or where they are listed."""
    known = fields()
    name = key.removeprefix("config.")
    near = [k for k in known if k == name or k.endswith(f".{name}")]
    near = near or difflib.get_close_matches(name, known, 3)
    if not near:
        last = {k.rpartition(".")[2]: k for k in reversed(known)}
        near = [last[n] for n in difflib.get_close_matches(name.rpartition(".")[2], last, 1)]
    if not near:
        return "--help lists them all"
    return "did you mean " + " or ".join(f"--config.{k}" for k in near[:3]) + "?"


def overridden(data: Mapping[str, Any], overrides: Mapping[str, str]) -> dict[str, Any]:
    """The nested values of a config with some of them replaced, each given as text.

    Text that is no value of the field's type stays text, which `from_config_dict` refuses. Raises
    ConfigError for an unknown key.
    """
    known = fields()
    out = _copied(data)
    for key, text in overrides.items():
        if key not in known and not any(k.startswith(f"{key}.") for k in known):
            raise ConfigError(f"unknown config key 'config.{key}': {nearest(key)}")
        *groups, name = key.split(".")
        place = out
        for group in groups:
            place = place.setdefault(group, {})
        place[name] = _value(known[key].kind, text) if key in known else text
    return out


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """{"a": {"b": value}} of {"a.b": value}."""
    out: dict[str, Any] = {}
    for key, value in flat.items():
        *groups, name = key.split(".")
        place = out
        for group in groups:
            place = place.setdefault(group, {})
        place[name] = value
    return out


def _copied(data: Mapping[str, Any]) -> dict[str, Any]:
    return {k: _copied(v) if isinstance(v, Mapping) else v for k, v in data.items()}


def _value(kind: Any, text: str) -> Any:
    """`text` as a value of a field's type; the text itself where it is none."""
    try:
        if kind is str:
            return text
        if kind is bool:
            return _BOOLS.get(text.lower(), text)
        if kind in (int, float):
            return kind(text)
        if text[:1] in ("(", "["):
            found = ast.literal_eval(text)
            return found if isinstance(found, list | tuple) else text
        parts = [part.strip() for part in text.split(",") if part.strip()]
        return tuple(parts) if kind == tuple[str, ...] else tuple(map(float, parts))
    except (ValueError, SyntaxError):
        return text
