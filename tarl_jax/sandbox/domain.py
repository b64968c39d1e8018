"""A tool-use domain: a database that episodes share, the tools that act on it, and its state.

One `Domain` serves any number of episodes at once. An episode owns a `State`, a copy-on-write view
that holds only the records the episode wrote; opening or comparing states touches nothing else.

The state hash is the benchmark's (see `digest.py`). Two databases are "equal" in this module
exactly when those hashes are: 47 and 47.0 differ, key order does not matter.
"""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints, is_typeddict

from tarl_jax.config import InputError
from tarl_jax.sandbox.digest import Digest, frozen, tau, tau2, tau2_lists, tau2_records
from tarl_jax.sandbox.dual_control import SIDES, Side, UserSide

Record = dict[str, Any]
Database = dict[str, dict[str, Record]]  # table -> key -> record (JSON-like values)
Rules = Literal["tau", "tau2"]  # whose rule book: τ-bench's or τ²-bench's


class ToolError(Exception):
    """What a tool raises to refuse a call; the agent reads "Error: <text>"."""


class Unfinished(ToolError):
    """A refusal after which what the tool has written stays: a fault of the benchmark, kept."""


class Refusal(str):
    """The text that answers a refused call: `isinstance(output, Refusal)` tells one.

    The text itself does not: a refusal begins with "Error: ", but that of a tool that does not
    exist is τ-bench's "Unknown action <name>".
    """


# --- state ----------------------------------------------------------------------------------------


def _equal(a: Any, b: Any) -> bool:
    # `==` alone takes 47 for 47.0; `repr` alone sees the order of keys.
    return a is b or (a == b and (repr(a) == repr(b) or repr(frozen(a)) == repr(frozen(b))))


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copy(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_copy(item) for item in value]
    return value


class State:
    """One episode's view of the shared database. Made by `Domain.new_state` and `State.fork`.

    Every record that a method hands out is read only by convention, except those of `edit` and
    `add`, which may be written until the state is next forked or passed to `Domain.call`.
    """

    def __init__(self, database: Database):
        self._base = database
        self._edits: dict[tuple[str, str], Record] = {}
        self._private: set[tuple[str, str]] = set()  # edits that no other state can see

    def table(self, name: str) -> Mapping[str, Record]:
        """All records of a table, by key, in database order. Raises KeyError for no such table."""
        records = self._base[name]
        edited = {key: record for (table, key), record in self._edits.items() if table == name}
        return {**records, **edited} if edited else records

    def get(self, table: str, key: str) -> Record | None:
        """The record as this state has it, or None. Raises KeyError for no such table."""
        record = self._edits.get((table, key))
        return self._base[table].get(key) if record is None else record

    def edit(self, table: str, key: str) -> Record:
        """The record as this state's own copy, to write in place. Raises KeyError if none."""
        if (table, key) not in self._private:
            record = self.get(table, key)
            if record is None:
                raise KeyError(f"no record {key!r} in table {table!r}: make it with add()")
            self.add(table, key, _copy(record))
        return self._edits[table, key]

    def add(self, table: str, key: str, record: Record) -> None:
        """Puts `record` at `key`, new or in place of what was there; the state owns it from now."""
        self._edits[table, key] = record
        self._private.add((table, key))

    def changes(self) -> dict[tuple[str, str], Record]:
        """(table, key) -> record, for the records that differ in value from the base database."""
        return {
            (table, key): record
            for (table, key), record in self._edits.items()
            if not _equal(record, self._base[table].get(key))
        }

    def fork(self) -> "State":
        """An independent copy; costs one shallow copy of the dict of written records."""
        twin = State(self._base)
        twin._edits = dict(self._edits)
        self._private.clear()  # both now hold the same records, so both must copy before writing
        return twin


# --- tools ----------------------------------------------------------------------------------------

_JSON_TYPES = {str: "string", int: "integer", float: "number", bool: "boolean", dict: "object"}
_PLAIN = [{"type": "string"}, {"type": "number"}, {"type": "boolean"}]
_LARGEST = 10**15  # of a number in an argument: a sum of larger floats would lose cents


@dataclass(frozen=True)
class Tool:
    """A function `(state, **arguments) -> str`, and the OpenAI function schema the agent is shown.

    `write` says whether it may change the state. Made by `make_tool`.
    """

    name: str
    function: Callable[..., str]
    write: bool
    schema: dict[str, Any]

    def problem(self, kwargs: Any) -> str | None:
        """What is wrong with the names and types of these arguments, or None."""
        if not isinstance(kwargs, dict):
            return "arguments should be a JSON object"
        parameters = self.schema["function"]["parameters"]
        for name in parameters["required"]:
            if name not in kwargs:
                return f"missing argument {name!r}"
        for name, value in kwargs.items():
            schema = parameters["properties"].get(name)
            if schema is None:
                return f"unexpected argument {name!r}"
            if not _fits(value, schema):
                return f"argument {name!r} should be of type {_type_text(schema)}"
        return None


def make_tool(function: Callable[..., str], *, write: bool, like: Tool | None = None) -> Tool:
    """The `Tool` of a typed function whose first parameter is the state.

    The docstring up to "Args:" describes the tool, and each "name: text" below it a parameter. The
    fields of a TypedDict are described by `Annotated[type, text]`.

    Args:
      like: a tool that is described in the same words, for a function without them.
    Raises TypeError for an annotation without a JSON type, ValueError for an undescribed parameter.
    """
    if like is not None:
        return Tool(function.__name__, function, write, like.schema)
    description, _, args = (inspect.getdoc(function) or "").partition("\n\nArgs:\n")
    texts: dict[str, str] = {}
    for line in inspect.cleandoc(args).splitlines():
        if not line.startswith(" "):
            name, _, line = line.partition(":")
        texts[name] = f"{texts.get(name, '')} {line.strip()}".strip()
    _, *parameters = inspect.signature(function, eval_str=True).parameters.values()
    properties = {}
    for p in parameters:
        if p.name not in texts:
            raise InputError(f"{function.__name__}: no line {p.name!r} below 'Args:'")
        properties[p.name] = _type_schema(p.annotation) | {"description": texts[p.name]}
    required = [p.name for p in parameters if p.default is p.empty]
    schema = {
        "name": function.__name__,
        "description": " ".join(description.split()),
        "parameters": {"type": "object", "properties": properties, "required": required},
    }
    return Tool(function.__name__, function, write, {"type": "function", "function": schema})


def _type_schema(annotation: Any) -> dict[str, Any]:
    if annotation in _JSON_TYPES:
        return {"type": _JSON_TYPES[annotation]}
    if get_origin(annotation) is Annotated:
        annotation, text = get_args(annotation)
        return _type_schema(annotation) | {"description": text}
    if get_origin(annotation) is Literal:
        choices = list(get_args(annotation))
        return _type_schema(type(choices[0])) | {"enum": choices}
    if get_origin(annotation) is list:
        return {"type": "array", "items": _type_schema(*get_args(annotation))}
    if is_typeddict(annotation):
        fields = get_type_hints(annotation, include_extras=True)
        properties = {name: _type_schema(field) for name, field in fields.items()}
        return {"type": "object", "properties": properties, "required": list(fields)}
    raise TypeError(
        f"no JSON schema for {annotation!r}: use str, int, float, bool, dict, a TypedDict, list[…]"
    )


def _type_text(schema: dict[str, Any]) -> str:
    if "items" in schema:
        return f"array of {_type_text(schema['items'])}"
    fields = [f"{name}: {_type_text(f)}" for name, f in schema.get("properties", {}).items()]
    return f"{schema['type']} ({', '.join(fields)})" if fields else schema["type"]


def _fits(value: Any, schema: dict[str, Any]) -> bool:
    # An enum is left to the tool, which may have an earlier complaint to make about the call.
    if schema["type"] == "array":
        return isinstance(value, list) and all(_fits(item, schema["items"]) for item in value)
    if "properties" in schema:
        return isinstance(value, dict) and _fields_fit(value, schema)
    kind = _JSON_TYPES.get(type(value))
    if kind in ("integer", "number") and not abs(value) <= _LARGEST:  # written so for nan
        return False
    return kind == schema["type"] or (kind == "integer" and schema["type"] == "number")


def _fields_fit(value: Record, schema: dict[str, Any]) -> bool:
    # As in JSON Schema, fields that were not asked for are let through; here only plain ones.
    for name, item in value.items():
        allowed = [schema["properties"][name]] if name in schema["properties"] else _PLAIN
        if not isinstance(name, str) or not any(_fits(item, kind) for kind in allowed):
            return False
    return all(name in value for name in schema["required"])


# --- domain ---------------------------------------------------------------------------------------


class _Absent:
    def __repr__(self) -> str:
        return "(absent)"


_ABSENT = _Absent()


class Domain:
    """A shared database, the tools on it and the policy text that the agent must follow.

    The database must not be written after it is handed over. A state belongs to the domain that
    made it: methods raise ValueError for one of another domain.

    rules: whose hash, and how a call is refused that no tool answers. By τ-bench's, the types of
    arguments are checked first; by τ²-bench's, a tool takes what it is given, and what Python says
    to it is the answer.
    user: the user's half, where users have tools of their own (by τ²-bench's rules).

    Attributes:
      prompt: the agent's whole system prompt: the policy alone, unless its benchmark puts words
        around it.
      schemas: the OpenAI function schemas that the agent is shown; its tools' own, unless published
        data describe them in words of theirs.
      records: the type of each table's records (`typed_records.Model`), where its rules have some.
    """

    def __init__(
        self, name: str, policy: str, database: Database, tools: Iterable[Tool],
        rules: Rules = "tau", user: UserSide | None = None,
    ):  # fmt: skip
        self.name = name
        self.policy = policy
        self.prompt = policy
        self.database = database
        self.tools: dict[str, Tool] = {tool.name: tool for tool in tools}
        self.schemas = [tool.schema for tool in self.tools.values()]
        self.rules = rules
        self.user = user
        self.records: Mapping[str, Any] = {}
        theirs = user.tables if user else ()
        ours = {table: records for table, records in database.items() if table not in theirs}
        self._digests = {
            "assistant": Digest(ours, tau2_lists if user else tau2 if rules == "tau2" else tau),
            "user": Digest({table: database[table] for table in theirs}, tau2_records),
        }

    def new_state(self) -> State:
        """A state equal to the database; copies nothing."""
        return State(self.database)

    def tools_of(self, requestor: Side) -> Mapping[str, Tool]:
        """The tools of the agent ("assistant") or of the user, who may have none."""
        if requestor == "assistant":
            return self.tools
        return self.user.tools if self.user else {}

    def call(
        self, state: State, name: str, kwargs: Mapping[str, Any], requestor: Side = "assistant"
    ) -> str:
        """Runs a tool on the state and returns what its caller, agent or user, reads.

        A refused call is answered by a `Refusal`, leaves the state as it was (but for an
        `Unfinished` one), and never raises.
        """
        self._own(state)
        if not isinstance(name, str):
            return Refusal("Error: the name of a tool should be a string")
        tool, lenient = self.tools_of(requestor).get(name), self.rules == "tau2"
        if tool is None:
            text = f"Error: Tool '{name}' not found." if lenient else f"Unknown action {name}"
            return Refusal(text)
        if not lenient and (problem := tool.problem(kwargs)):
            return Refusal(f"Error: {problem}")
        # A write runs on a fork, so that a refusal halfway through leaves no trace.
        writes = tool.write or self.user is not None
        target = state.fork() if writes else state
        output: str
        try:
            output = tool.function(target, **kwargs)
            self._sync(target)
        except ToolError as error:
            output = Refusal(f"Error: {error}")
            if not isinstance(error, Unfinished):
                return output
        except Exception as error:
            if not lenient:
                raise
            return Refusal(f"Error: {self._python_text(tool, error, requestor)}")
        if writes:
            state._edits, state._private = target._edits, target._private
        return output

    def _sync(self, state: State) -> None:
        if self.user:
            try:
                self.user.sync(state)
            except ToolError as error:
                raise Unfinished(str(error)) from None

    def _python_text(self, tool: Tool, error: Exception, requestor: Side) -> str:
        # An argument that is missing or unknown: τ²-bench's tools are methods of a class.
        if not str(error).startswith(f"{tool.name}()"):
            return str(error)
        kit = self.name.partition("-")[0].capitalize() + ("User" if requestor == "user" else "")
        return f"{kit}Tools.{error}"

    def state_hash(self, state: State, requestor: Side = "assistant") -> str:
        """Hex SHA-256 of the database as the state has it, by the benchmark's definition.

        requestor: whose database, where the user has one.
        """
        self._own(state)
        return self._digests[requestor].hexdigest(state.changes())

    def same(self, state_a: State, state_b: State) -> bool:
        """Whether both states have equal databases; looks at the written records only.

        By τ²-bench's rules 2 and 2.0 are equal here, as in its verdicts, though not in its hash;
        where users have tools, both databases count, and their hashes decide.
        """
        self._own(state_a, state_b)
        if self.user:
            return all(self.state_hash(state_a, side) == self.state_hash(state_b, side)
                       for side in SIDES)
        if self.rules == "tau2":
            written = state_a._edits.keys() | state_b._edits.keys()
            return all(state_a.get(*where) == state_b.get(*where) for where in written)
        a, b = state_a.changes(), state_b.changes()
        return a.keys() == b.keys() and all(_equal(a[where], b[where]) for where in a)

    def diff(self, state: State, against: State | None = None) -> list[str]:
        """Lines such as "orders #W1 status: 'pending' -> 'cancelled'", one per value that differs.

        The left side is the base database, or `against` where given; the right side is `state`.
        """
        against = self.new_state() if against is None else against
        self._own(state, against)
        lines: list[str] = []
        for table, key in sorted(state._edits.keys() | against._edits.keys()):
            records = (against.get(table, key), state.get(table, key))
            old, new = (_ABSENT if record is None else record for record in records)
            lines += (f"{table} {key}{line}" for line in _differences("", old, new))
        return lines

    def _own(self, *states: State) -> None:
        if any(state._base is not self.database for state in states):
            raise ValueError(f"a state of another domain was given to domain {self.name!r}")


def _differences(path: str, old: Any, new: Any) -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in {**old, **new}:
            at = f"{path}.{key}" if path else f" {key}"
            yield from _differences(at, old.get(key, _ABSENT), new.get(key, _ABSENT))
    elif isinstance(old, list) and isinstance(new, list):
        for index, (left, right) in enumerate(zip_longest(old, new, fillvalue=_ABSENT)):
            yield from _differences(f"{path}[{index}]", left, right)
    elif repr(old) != repr(new):
        yield f"{path}: {old!r} -> {new!r}"
