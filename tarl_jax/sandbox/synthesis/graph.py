"""Which read tool yields the arguments of which write tool.

The nodes are a domain's tools and their parameters are read from its schemas; what a tool's answer
tells, which no schema says, is stated here once for the retail tools.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from tarl_jax.sandbox.domain import Domain, Refusal
from tarl_jax.types import Call

# What a customer knows and an agent need not look up.
SAID = ("email", "first_name", "last_name", "zip", "order_id", "reason")
# read tool -> arguments of other tools that its answer holds
YIELDS = {
    "find_user_id_by_email": ("user_id",),
    "find_user_id_by_name_zip": ("user_id",),
    "get_order_details": ("item_ids", "product_id", "payment_method_id"),
    "get_user_details": ("payment_method_id",),
    "get_product_details": ("new_item_ids",),
}


class ToolGraph:
    """The dependencies between the tools of a retail domain."""

    def __init__(self, domain: Domain):
        self._domain = domain
        self._parameters = {
            name: tuple(tool.schema["function"]["parameters"]["required"])
            for name, tool in domain.tools.items()
        }

    def writes(self) -> list[str]:
        """The write tools whose every argument a customer says or a read tool yields, in order."""
        known: set[str] = set(SAID)
        reads: set[str] = set()
        while ready := {t for t in YIELDS.keys() - reads if known >= set(self._parameters[t])}:
            reads |= ready
            known.update(*(YIELDS[tool] for tool in ready))
        return [name for name, tool in self._domain.tools.items()
                if tool.write and known >= set(self._parameters[name])]

    def reads_for(self, write: str) -> list[str]:
        """The read tools that may be needed before a write, each after those it rests on."""
        found: list[str] = []

        def visit(tool: str) -> None:
            for name in self._parameters[tool]:
                for read, told in YIELDS.items():
                    if name in told and name not in SAID and read not in found:
                        visit(read)
                        found.append(read)

        visit(write)
        return found

    def ungrounded(self, call: Call, said: dict[str, str]) -> list[str]:
        """The arguments of a write that no read on the way to it tells, nor the customer says.

        said: what this customer knows, by the names of SAID.
        """
        state = self._domain.new_state()
        known: dict[str, set[str]] = {name: {value} for name, value in said.items()}
        texts = set(said.values())
        for read in self.reads_for(call.name):
            for kwargs in _combinations(self._parameters[read], known):
                answer = self._domain.call(state, read, kwargs)
                if isinstance(answer, Refusal):
                    continue
                if YIELDS[read] == ("user_id",):
                    known.setdefault("user_id", set()).add(answer)
                    texts.add(answer)
                else:
                    for key, text in _strings(json.loads(answer)):
                        known.setdefault(key, set()).add(text)
                        texts.add(text)
        return [name for name, value in call.kwargs.items()
                if not set(value if isinstance(value, list) else [value]) <= texts]


def _combinations(names: tuple[str, ...], known: dict[str, set[str]]) -> Iterator[dict[str, str]]:
    if not names:
        yield {}
        return
    for value in sorted(known.get(names[0], ())):
        for rest in _combinations(names[1:], known):
            yield {names[0]: value, **rest}


def _strings(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """(field, text) of every text in a JSON value, keys of mappings among them."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield "", name
            yield from _strings(item, name)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item, key)
    elif isinstance(value, str):
        yield key, value
