"""What τ²-bench's harness tells an agent, word for word, from the user's own files.

The policy is part of a domain's folder. The instructions around it and what tools are for stand in
the benchmark's source (`tau2_source.py`), where the folder is part of a checkout; or in what the
harness has sent: recorded requests, a folder `wire` in the domain's or up to two above it, of files
`*.jsonl` or `*.jsonl.gz` with lines {"request": {"messages": […], "tools": […]}, …}.
Where neither is there, both are in words of this project.
"""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from tarl_jax.config import InputError
from tarl_jax.config.plain import loads
from tarl_jax.sandbox.tau2_source import Schema, checkout_of, prompt_of, schemas_of_checkout

_ABOVE = 3  # the domain's folder, and two above it
_PROMPT = re.compile(r"<instructions>\n.*\n</instructions>\n<policy>\n(.*)\n</policy>", re.S)
_OWN = (
    "You serve a customer and keep to the <policy> below. Each of your turns is either one message"
    " to the customer or one tool call, never both.\nBe of help as far as the policy lets you."
    " Whatever JSON you write has to be valid."
)


def prompt_around(folder: Path, policy: str) -> str:
    """The agent's system prompt over a policy: the benchmark's, or one in our words."""
    checkout = checkout_of(folder)
    if checkout and (found := prompt_of(checkout, policy)):
        return found
    for request in _requests(folder):
        if match := _PROMPT.fullmatch(_system(request)):
            begin, end = match.span(1)
            return match[0][:begin] + policy + match[0][end:]
    return f"<instructions>\n{_OWN}\n</instructions>\n<policy>\n{policy}\n</policy>"


def schemas_around(folder: Path, name: str, tools: Collection[str]) -> list[Schema] | None:
    """The benchmark's schemas of a domain's tools, in its order; None where they are not found."""
    checkout = checkout_of(folder)
    found = schemas_of_checkout(checkout, name.removesuffix("-workflow")) if checkout else None
    if found and _names(found) == set(tools):
        return found
    for request in _requests(folder):
        shown = request.get("tools")
        if shown and _PROMPT.fullmatch(_system(request)) and _names(shown) == set(tools):
            return list(shown)
    return None


def _names(schemas: list[Schema]) -> set[str]:
    return {schema["function"]["name"] for schema in schemas}


def _system(request: dict[str, Any]) -> str:
    """The system prompt of a request; empty where there is none."""
    first: dict[str, Any] = next(iter(request.get("messages") or ()), {})
    return str(first.get("content") or "") if first.get("role") == "system" else ""


def _requests(folder: Path) -> Iterator[dict[str, Any]]:
    """Those of all recordings, in order of their files' names. Raises InputError."""
    inside = folder.resolve()
    for place in (inside, *inside.parents)[:_ABOVE]:
        for path in sorted((place / "wire").glob("*.jsonl*")):
            for number, line in enumerate(_lines(path), 1):
                try:
                    request = loads(line)["request"]
                    _system(request), _names(request.get("tools") or [])
                except (ValueError, KeyError, TypeError, AttributeError):
                    raise InputError(f"{path}:{number}: is no recorded request") from None
                yield request


def _lines(path: Path) -> list[str]:
    try:
        content = path.read_bytes()
        text = gzip.decompress(content) if path.suffix == ".gz" else content
        return [line for line in text.decode("utf-8").split("\n") if line.strip()]
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from None
