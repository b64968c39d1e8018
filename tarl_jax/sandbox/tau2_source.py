"""τ²-bench's words to the agent, read from a checkout: its instructions, and its tools' schemas.

There a tool is a method with `@is_tool`, whose docstring (Google's form) and annotations pydantic
makes a schema of. The files are parsed, never run; what comes out is what the harness sends.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tarl_jax.config import InputError
from tarl_jax.config.plain import read_text

Schema = dict[str, Any]
_AGENT = "src/tau2/agent/llm_agent.py"
_PLAIN: dict[str, Schema] = {
    "str": {"type": "string"}, "int": {"type": "integer"}, "float": {"type": "number"},
    "bool": {"type": "boolean"}, "None": {"type": "null"}, "Any": {},
    "dict": {"additionalProperties": True, "type": "object"},
    "list": {"items": {}, "type": "array"},
}  # fmt: skip
_SECTION = re.compile(
    r"^(Args|Arguments|Parameters|Params|Raises|Exceptions|Except|Attributes|Example|Examples"
    r"|Returns|Yields):[ \t]*$", re.M
)


def checkout_of(folder: Path) -> Path | None:
    """The checkout that a folder of data is part of; None where it is part of none."""
    inside = folder.resolve()
    return next((p for p in (inside, *inside.parents) if (p / _AGENT).is_file()), None)


def prompt_of(checkout: Path, policy: str) -> str | None:
    """The agent's system prompt over a policy; None where the source is of another form."""
    texts = {}
    for node in _tree(checkout / _AGENT).body:
        match node:
            case ast.Assign(
                targets=[ast.Name(name)],
                value=ast.Call(func=ast.Attribute(ast.Constant(str(text)), "strip"), args=[]),
            ):
                texts[name] = text.strip()
    try:
        return texts["SYSTEM_PROMPT"].format(
            agent_instruction=texts["AGENT_INSTRUCTION"], domain_policy=policy
        )
    except (KeyError, IndexError, ValueError):
        return None


def schemas_of_checkout(checkout: Path, name: str) -> list[Schema] | None:
    """The OpenAI schemas of a domain's tools in the source's order; None where there are none.

    Raises InputError naming file and line of an annotation that is not understood.
    """
    folder = checkout / "src/tau2/domains" / name
    path = folder / "tools.py"
    if not path.is_file():
        return None
    types = _Types([p for p in (folder / "data_model.py", path) if p.is_file()])
    return [
        {"type": "function", "function": _function(types, method)}
        for node in _tree(path).body if isinstance(node, ast.ClassDef)
        for method in node.body if isinstance(method, ast.FunctionDef)
        if any(isinstance(d, ast.Call) and isinstance(d.func, ast.Name) and d.func.id == "is_tool"
               for d in method.decorator_list)
    ]


def _function(types: _Types, method: ast.FunctionDef) -> Schema:
    text, described = _docstring(ast.get_docstring(method) or "")
    arguments = method.args.args[1:]  # without self
    defaults = [None] * (len(arguments) - len(method.args.defaults)) + [*method.args.defaults]
    properties: Schema = {}
    required = []
    types.used.clear()
    for argument, default in zip(arguments, defaults, strict=True):
        more: Schema = {}
        if argument.arg in described:
            more["description"] = described[argument.arg]
        if default is None:
            required.append(argument.arg)
        else:
            more["default"] = ast.literal_eval(default)
        properties[argument.arg] = types.field(argument.arg, argument.annotation, more)
    parameters: Schema = {"properties": properties, "title": "parameters", "type": "object"}
    if required:
        parameters["required"] = required
    if defs := types.definitions():
        parameters["$defs"] = defs
    return {"name": method.name, "description": text or method.name,
            "parameters": _sorted(parameters)}


def _docstring(text: str) -> tuple[str, dict[str, str]]:
    """(the description, each argument's), as docstring_parser reads Google's form."""
    marks = list(_SECTION.finditer(text))
    short, _, long = text[: marks[0].start() if marks else len(text)].partition("\n")
    described = {}
    for place, mark in enumerate(marks):
        if mark[1] not in ("Args", "Arguments", "Parameters", "Params"):
            continue
        end = marks[place + 1].start() if marks[place + 1 :] else len(text)
        lines = text[mark.end() : end].strip("\n")
        indent = len(lines) - len(lines.lstrip())
        for entry in re.split(rf"^[ ]{{{indent}}}(?=\S)", lines, flags=re.M)[1:]:
            name, _, said = entry.partition(":")
            first, _, rest = said.removeprefix(" ").partition("\n")
            said = f"{first}\n{inspect.cleandoc(rest)}".strip("\n")
            described[re.sub(r"\s*\(.*\)\s*$", "", name).strip()] = said
    description = "\n\n".join(filter(None, (short.strip(), long.strip())))
    return description, described


class _Types:
    """Annotations of a domain's files as JSON schemas.

    used: models that were referred to, to be defined beside.
    """

    def __init__(self, paths: list[Path]):
        self.used: dict[str, None] = {}
        self._classes: dict[str, ast.ClassDef] = {}
        self._aliases: dict[str, ast.expr] = {}
        self._path = paths[-1]
        for path in paths:
            for node in _tree(path).body:
                if isinstance(node, ast.ClassDef):
                    self._classes[node.name] = node
                elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                    self._aliases[node.targets[0].id] = node.value

    def field(self, name: str, annotation: ast.expr | None, more: Mapping[str, Any]) -> Schema:
        found = {**(self.of(annotation) if annotation else {}), **more}
        if "$ref" not in found:
            found["title"] = name.title().replace("_", " ").strip()
        return found

    def definitions(self) -> Schema:
        """Of the models that were used, and of those that these use."""
        found: Schema = {}
        while missing := [name for name in self.used if name not in found]:
            for name in missing:
                found[name] = self._definition(self._classes[name])
        return found

    def of(self, node: ast.expr) -> Schema:
        """The schema of an annotation."""
        match node:
            case ast.Constant(None):
                return dict(_PLAIN["None"])
            case ast.Constant(str(text)):
                return self.of(ast.parse(text, mode="eval").body)
            case ast.Name(name) if name in self._aliases:
                return self.of(self._aliases[name])
            case ast.Name(name) if name in self._classes:
                self.used[name] = None
                return {"$ref": f"#/$defs/{name}"}
            case ast.Name(name) if name.lower() in ("list", "dict") or name in _PLAIN:
                return dict(_PLAIN[name if name in _PLAIN else name.lower()])
            case ast.BinOp(op=ast.BitOr()):
                return {"anyOf": list(self._options(node))}
            case ast.Subscript(ast.Name(name), inner):
                if (found := self._subscripted(name, inner)) is not None:
                    return found
        raise InputError(f"{self._path}:{node.lineno}: the annotation {ast.unparse(node)[:60]} is"
                         " not understood: show this project's words,"
                         " --config.sandbox.tool_schemas=own")

    def _subscripted(self, name: str, inner: ast.expr) -> Schema | None:
        parts = inner.elts if isinstance(inner, ast.Tuple) else [inner]
        match name:
            case "List" | "list":
                return {"items": self.of(inner), "type": "array"}
            case "Dict" | "dict":
                return {"additionalProperties": self.of(parts[-1]), "type": "object"}
            case "Optional":
                return {"anyOf": [self.of(inner), dict(_PLAIN["None"])]}
            case "Union":
                return {"anyOf": [option for part in parts for option in self._options(part)]}
            case "Literal":
                values = [ast.literal_eval(part) for part in parts]
                one = {"const": values[0]} if len(values) == 1 else {"enum": values}
                return {**one, **_PLAIN[type(values[0]).__name__]}
            case "Annotated":
                return {**self.of(parts[0]), **self._told(parts[1])}
        return None

    def _options(self, node: ast.expr) -> Iterator[Schema]:
        if isinstance(node, ast.BinOp):
            yield from self._options(node.left)
            yield from self._options(node.right)
        else:
            yield self.of(node)

    def _definition(self, node: ast.ClassDef) -> Schema:
        bases = [base.id for base in node.bases if isinstance(base, ast.Name)]
        about: Schema = {"title": node.name}
        if text := ast.get_docstring(node):
            about["description"] = text
        if "Enum" in bases:
            values = [ast.literal_eval(s.value) for s in node.body if isinstance(s, ast.Assign)]
            return {**about, "enum": values, **_PLAIN[type(values[0]).__name__]}
        properties: Schema = {}
        required: list[str] = []
        for name, annotation, value in self._fields(node):
            more = self._told(value)
            if value is None or (isinstance(value, ast.Call) and not _has_default(value)):
                required.append(name)
            properties[name] = self.field(name, annotation, more)
        found = {**about, "properties": properties, "type": "object"}
        return found | ({"required": required} if required else {})

    def _fields(
        self, node: ast.ClassDef
    ) -> Iterator[tuple[str, ast.expr, ast.expr | None]]:
        for base in node.bases:
            if isinstance(base, ast.Name) and base.id in self._classes:
                yield from self._fields(self._classes[base.id])
        for line in node.body:
            if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name):
                yield line.target.id, line.annotation, line.value

    def _told(self, value: ast.expr | None) -> Schema:
        """What a field's `Field(…)` or plain value says of it."""
        if value is None:
            return {}
        if not isinstance(value, ast.Call):
            return {"default": ast.literal_eval(value)}
        found = {k.arg: ast.literal_eval(k.value) for k in value.keywords
                 if k.arg in ("default", "description")}
        if value.args and not _is_ellipsis(value.args[0]):
            found["default"] = ast.literal_eval(value.args[0])
        return {str(name): said for name, said in found.items()}


def _has_default(field: ast.Call) -> bool:
    named = any(k.arg in ("default", "default_factory") for k in field.keywords)
    return named or bool(field.args and not _is_ellipsis(field.args[0]))


def _is_ellipsis(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is ...


def _sorted(value: Any, named: bool = False) -> Any:
    """Keys in pydantic's order, by the alphabet; those of properties as they are."""
    if isinstance(value, list):
        return [_sorted(item) for item in value]
    if not isinstance(value, dict):
        return value
    keys = value if named else sorted(value)
    return {key: _sorted(value[key], key == "properties") for key in keys}


def _tree(path: Path) -> ast.Module:
    try:
        return ast.parse(read_text(path), str(path))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise InputError(f"{path}: is no Python that can be read ({error})") from None
