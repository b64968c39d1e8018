"""The words in which published data describe a domain's tools, as OpenAI function schemas.

τ-bench has them in its code, one file per tool with a class whose `get_info` returns the schema, in
the order of `ALL_TOOLS`. Those files are parsed, never run; a folder of JSON may hold the same list
as `tools.json`.
"""

from __future__ import annotations

import ast
from collections.abc import Collection
from pathlib import Path
from typing import Any

from tarl_jax.config import InputError
from tarl_jax.config.plain import read_json, read_text

Schema = dict[str, Any]


def schemas_of(folder: Path, tools: Collection[str]) -> list[Schema] | None:
    """The folder's schemas in its order; None where it has none.

    tools: the names of those that the domain answers. A schema of another one is left out, as the
      reference leaves out tools that its list does not name.
    Raises InputError where the folder describes some of them and not all.
    """
    whole, code = folder / "tools.json", folder / "tools"
    if whole.is_file():
        where, found = whole, read_json(whole)
    elif (code / "__init__.py").is_file():
        where, found = code, _parsed(code)
    else:
        return None
    try:
        by_name = {schema["function"]["name"]: schema for schema in found}
    except (TypeError, KeyError):
        raise InputError(f"{where}: is no list of OpenAI function schemas") from None
    if missing := sorted(set(tools) - by_name.keys()):
        raise InputError(f"{where}: does not describe the tools {', '.join(missing)}; mend it, or"
                         " show this project's words: --config.sandbox.tool_schemas=own")
    return [schema for name, schema in by_name.items() if name in tools]


def _parsed(code: Path) -> list[Schema]:
    """The schemas of τ-bench's folder of tools, in the order of its list `ALL_TOOLS`."""
    by_class = {}
    for path in sorted(code.glob("*.py")):
        for node in _tree(path).body:
            if isinstance(node, ast.ClassDef) and (schema := _schema(path, node)):
                by_class[node.name] = schema
    order: list[str] = []
    for node in _tree(code / "__init__.py").body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.List):
            order = [name.id for name in node.value.elts if isinstance(name, ast.Name)]
    return [by_class[name] for name in order or by_class if name in by_class]


def _tree(path: Path) -> ast.Module:
    try:
        return ast.parse(read_text(path), str(path))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise InputError(f"{path}: is no Python that can be read ({error})") from None


def _schema(path: Path, node: ast.ClassDef) -> Schema | None:
    """The literal that the class's `get_info` returns; None where it has no such method."""
    for method in node.body:
        if isinstance(method, ast.FunctionDef) and method.name == "get_info":
            returned = next((s for s in ast.walk(method) if isinstance(s, ast.Return)), None)
            try:
                found = ast.literal_eval(returned.value) if returned and returned.value else None
            except ValueError:
                found = None
            if not isinstance(found, dict):
                raise InputError(f"{path}:{method.lineno}: get_info of {node.name} returns no"
                                 " literal: its schema cannot be read")
            return found
    return None
