"""Published benchmark data from a folder: tau-bench (arXiv 2406.12045), tau2-bench (2506.07982).

A folder is one of: `db.json` with `policy.md` and tasks beside it; a checkout of tau-bench, or its
`tau_bench/envs/<domain>`; a checkout of tau2-bench, or its `data/tau2/domains/<domain>`. Python
files of tasks are parsed, never run.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast, get_args

from tarl_jax.config import InputError, ShopConfig
from tarl_jax.config.plain import dumps, read_json, read_text
from tarl_jax.sandbox import (
    airline_tau2,
    carrier,
    network,
    retail_tau2,
    shop,
    starts,
    telecom,
    telecom_records,
)
from tarl_jax.sandbox.airline import airline_domain
from tarl_jax.sandbox.desks import desk_of
from tarl_jax.sandbox.domain import Database, Domain, Refusal, Rules, ToolError
from tarl_jax.sandbox.faultless import faultless_dialogue
from tarl_jax.sandbox.retail import retail_domain
from tarl_jax.sandbox.scoring import BASES
from tarl_jax.sandbox.tau2_words import prompt_around, schemas_around
from tarl_jax.sandbox.tool_schemas import schemas_of
from tarl_jax.sandbox.typed_records import Model
from tarl_jax.types import Call, Check, GoldAction, Task


@dataclass(frozen=True)
class Source:
    """What `load_domain` has to know of a domain.

    make: by rule book, the domain over a database under a policy text.
    records: the tables that a folder must hold, and the type of their records by τ²'s rules.
    embedded: makes the synthetic database, None where there is none; policy: the rules that go
      with it.
    read: the database and the policy of a folder that is not laid out as the others, in its types.
    """

    make: Mapping[Rules, Callable[[Database, str], Domain]]
    records: Mapping[str, Model]
    embedded: Callable[[], Database] | None
    policy: Path
    read: Callable[[Path], tuple[Database, str]] | None = None


def _telecom(name: str, manual: str, embedded: Callable[[], Database] | None) -> Source:
    """manual: the file of a folder that says how phones are mended."""
    return Source(
        {"tau2": partial(telecom.telecom_domain, name=name)}, telecom_records.TABLES, embedded,
        network.POLICY, partial(telecom_records.read_folder, manual=manual),
    )


DOMAINS = {
    "retail": Source(
        {"tau": retail_domain, "tau2": retail_tau2.retail_domain}, retail_tau2.TABLES,
        lambda: shop.make_shop(ShopConfig()), shop.POLICY,
    ),
    "airline": Source(
        {"tau": airline_domain, "tau2": airline_tau2.airline_domain}, airline_tau2.TABLES,
        carrier.make_carrier, carrier.POLICY,
    ),
    "telecom": _telecom(
        "telecom", "tech_support_manual.md", lambda: network.make_network(ShopConfig())
    ),
    "telecom-workflow": _telecom("telecom-workflow", "tech_support_workflow.md", None),
}
_INSIDE = ("{folder}", "{folder}/tau_bench/envs/{name}", "{folder}/data/tau2/domains/{name}")
_TAU2_BASIS = ("DB", "COMMUNICATE")  # of a task that names none
_CRITERIA = {"actions", "env_assertions", "communicate_info", "nl_assertions", "reward_basis"}


def load_domain(
    name: str, data: str | Path | None = None, rules: Rules | None = None, own_words: bool = False
) -> Domain:
    """A domain of `DOMAINS` over its embedded synthetic data (None) or over a folder's.

    Args:
      rules: whose tools answer, "tau" or "tau2". None: those of the benchmark in whose format the
        folder is; "tau" for the embedded data.
      own_words: shows the agent this project's descriptions of the tools, where the folder has its
        own (`tool_schemas.py`).
    Raises ValueError for a name, a folder or rules that are not known, naming what there is, and
    for a record that is not of the rules' type.
    """
    if name not in DOMAINS:
        raise InputError(f"domain {name!r}: choose one of {', '.join(DOMAINS)}")
    if rules not in (None, *get_args(Rules)):
        raise InputError(f"rules {rules!r}: choose one of {', '.join(get_args(Rules))}")
    source = DOMAINS[name]
    folder = None if data is None else _folder(name, data)
    if folder is None:
        if source.embedded is None:
            raise InputError(f"domain {name!r} has no embedded data: give the folder of its data")
        database, text, where = source.embedded(), read_text(source.policy), "the embedded data"
    else:
        database, text = (source.read or partial(_read, source.records))(folder)
        format_of: Rules = "tau2" if _is_tau2(folder) else "tau"
        own_words = own_words or rules not in (None, format_of)  # they describe other tools
        where, rules = str(folder), rules or format_of
    book = cast(Rules, rules or next(iter(source.make)))
    if book not in source.make:
        raise InputError(f"rules {book!r}: the domain {name!r} has those of"
                         f" {', '.join(source.make)} alone")
    if book == "tau2" and source.read is None:
        database = _typed(database, source.records, where)
    domain = source.make[book](database, text)
    if book == "tau2" and source.read is None:
        domain.records = source.records
    if folder and book == "tau2":
        domain.prompt = prompt_around(folder, text)
    if folder and not own_words:
        found = schemas_of(folder, domain.tools)
        if found is None and book == "tau2":
            found = schemas_around(folder, name, domain.tools)
        domain.schemas = found or domain.schemas
    return domain


def embedded_domain(name: str, shop: ShopConfig, branch: int = 0) -> Domain:
    """A domain of `DOMAINS` over the synthetic data that its desk makes for a run.

    branch: each has other users, and other records of them.
    Raises InputError for a domain without a desk.
    """
    source = DOMAINS.get(name)
    if source is None or source.read is None:
        database = desk_of(name).make_database(shop, branch)
    elif source.embedded is None:
        raise InputError(f"domain {name!r} has no embedded data: set sandbox.data to its folder")
    else:
        database = network.make_network(shop, branch)
    source = DOMAINS[name]
    return next(iter(source.make.values()))(database, source.policy.read_text("utf-8"))


def load_benchmark_tasks(
    name: str, data: str | Path, domain: Domain | None = None, held_out: str = ""
) -> list[Task]:
    """All tasks of a folder, in its order. Gold calls are those that write.

    What tau2 judges by a language model stands in `Task.assertions`. `expert_turns` counts those of
    the shortest faultless dialogue (`faultless.py`).

    Args:
      domain: what `load_domain(name, data)` gives, if it is there already.
      held_out: the only split of the data that is held out, such as "test"; it may share tasks with
        "train", as τ²'s "base" does. Empty: "test" of τ²'s data, all but "train" of τ-bench's.
        Tasks of neither have the split "rest".
    Raises: ValueError for a folder without tasks or without that split, or a file that is broken
      (file and place).
    """
    domain = domain or load_domain(name, data)
    folder = _folder(name, data)
    tasks: list[Task] = []
    seen: set[str] = set()
    records = list(_records(folder))
    known: set[str] = set().union(*(parts for _, parts, _, _ in records))
    if held_out and held_out not in known:
        raise InputError(f"{folder}: has no split {held_out!r}; choose one of"
                         f" {', '.join(sorted(known)) or 'none: its tasks have no splits'}")
    # Telecom has thousands of tasks beside its training and test ones.
    chosen = held_out or ("test" if _is_tau2(folder) and "test" in known else "")
    for source, parts, number, record in records:
        task_id = f"{source}/{name}/{number}"
        if task_id in seen:
            raise InputError(f"{folder}: two tasks have the id {number!r}: rename or delete one")
        seen.add(task_id)
        splits = ["train"] if "train" in parts else []
        splits += ["held_out"] if chosen in parts or not (chosen or splits) else []
        splits = splits or ["rest"]
        try:
            tasks += [_task(domain, record, task_id, split, source) for split in splits]
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{folder}: task {task_id} is broken: {error!r}") from error
    if not seen:
        raise InputError(f"{folder}: has no tasks.json, tasks_*.json or tasks_*.py")
    return tasks


def task_records(name: str, data: str | Path) -> dict[str, dict[str, Any]]:
    """The tasks of a folder as its benchmark writes them, by `Task.task_id`."""
    return {f"{source}/{name}/{number}": record
            for source, _, number, record in _records(_folder(name, data))}


def _folder(name: str, data: str | Path) -> Path:
    tried = [Path(p.format(folder=data, name=name.removesuffix("-workflow"))) for p in _INSIDE]
    for folder in tried:
        if any((folder / mark).is_file() for mark in ("db.json", "data/users.json", "db.toml")):
            return folder
    listed = ", ".join(map(str, tried))
    raise InputError(f"{data}: holds no data of the domain {name!r}; looked in {listed}")


def _is_tau2(folder: Path) -> bool:
    """Whether τ²-bench lays its folders out so; τ-bench's tasks are in `tasks_<split>` files."""
    marks = ("tasks.json", "split_tasks.json", "db.toml")
    return any((folder / name).is_file() for name in marks)


def _read(records: Mapping[str, Model], folder: Path) -> tuple[Database, str]:
    """The database and the policy of a folder of JSON."""
    policies = [p for p in (folder / "policy.md", folder / "wiki.md") if p.is_file()]
    if not policies:
        raise InputError(f"{folder}: has neither policy.md nor wiki.md")
    return _database(folder, records), read_text(policies[0])


def _typed(database: Database, records: Mapping[str, Model], where: str) -> Database:
    """The database with every field of its records' types, as τ²-bench holds it."""
    typed: Database = {}
    for table, model in records.items():
        name = f"{table.removesuffix('s')}_id"  # τ-bench's users do not hold theirs
        try:
            typed[table] = {key: model.read({name: key} | r) for key, r in database[table].items()}
        except (ToolError, TypeError) as error:
            raise InputError(f"{where}: table {table!r} is not τ²-bench's: {error}") from None
    return typed


def _database(folder: Path, tables: Iterable[str]) -> Database:
    path = folder / "db.json"
    if path.is_file():
        database = read_json(path, dict)
    else:
        database = {table: read_json(folder / f"data/{table}.json") for table in tables}
    missing = [table for table in tables if not isinstance(database.get(table), dict)]
    if missing:
        raise InputError(f"{path}: lacks the tables {', '.join(missing)}")
    return {table: database[table] for table in tables}


def _records(folder: Path) -> Iterator[tuple[str, set[str], str, dict[str, Any]]]:
    """(source, names of the splits that it is in, number, record) of every task."""
    whole = folder / "tasks.json"
    if whole.is_file():
        path = folder / "split_tasks.json"
        splits = read_json(path, dict) if path.is_file() else {}
        if wrong := [name for name, ids in splits.items() if not isinstance(ids, list)]:
            raise InputError(f"{path}: the split {wrong[0]!r} is no list of tasks' ids")
        members = {name: set(map(str, ids)) for name, ids in splits.items()}
        for place, record in enumerate(read_json(whole, list)):
            if not isinstance(record, dict) or "id" not in record:
                raise InputError(f"{whole}: task {place} (from 0) is no object with an id")
            number = str(record["id"])
            yield "tau2", {n for n, ids in members.items() if number in ids}, number, record
        return
    for path in sorted([*folder.glob("tasks_*.json"), *folder.glob("tasks_*.py")]):
        part = path.stem.removeprefix("tasks_")
        records = read_json(path, list) if path.suffix == ".json" else _parsed(path)
        for place, record in enumerate(records):
            yield "tau_bench", {part}, f"{part}-{place}", record


def _parsed(path: Path) -> list[dict[str, Any]]:
    """The list of tasks that a Python file assigns, read from its syntax tree."""
    try:
        body = ast.parse(read_text(path), str(path)).body
    except SyntaxError as error:
        raise InputError(f"{path}:{error.lineno}: {error.msg}") from None
    except (ValueError, RecursionError, MemoryError) as error:
        raise InputError(f"{path}: is no Python that can be read ({error})") from None
    lists = [node.value for node in body
             if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.List)]
    return [_plain(path, element) for one in lists for element in one.elts]


def _plain(path: Path, node: ast.expr) -> Any:
    """A literal, where `Task(…)` and `Action(…)` are dicts of their keywords."""
    match node:
        case ast.Constant():
            return node.value
        case ast.List() | ast.Tuple():
            return [_plain(path, x) for x in node.elts]
        case ast.Dict() if all(node.keys):
            return {_plain(path, k): _plain(path, v)
                    for k, v in zip(node.keys, node.values, strict=True) if k is not None}
        case ast.Call(func=ast.Name(id="Task" | "Action"), args=[]) if all(
            k.arg for k in node.keywords
        ):
            return {k.arg: _plain(path, k.value) for k in node.keywords}
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float())):
            return ast.literal_eval(node)
    raise InputError(f"{path}:{node.lineno}: is no literal: {ast.unparse(node)[:60]}")


def _task(domain: Domain, record: dict[str, Any], task_id: str, split: str, source: str) -> Task:
    criteria = record.get("evaluation_criteria") or {}
    asked = _asked(domain, record, criteria, task_id) if source == "tau2" else {}
    actions = criteria.get("actions") or record.get("actions") or []
    calls = [
        Call(a["name"], a.get("kwargs") or a.get("arguments") or {})
        for a in actions if a.get("requestor", "assistant") == "assistant"
    ]
    for call in calls:
        if call.name not in domain.tools and not call.name.startswith(("get_", "respond")):
            raise InputError(f"{task_id}: no tool is named {call.name!r}")
    gold = tuple(c for c in calls if c.name in domain.tools and domain.tools[c.name].write)
    task = Task(
        task_id=task_id,
        user_id=record.get("user_id") or _user_of(domain, calls),
        instruction=record.get("instruction") or instruction_of(record["user_scenario"]),
        gold_calls=gold,
        outputs=tuple(record.get("outputs") or criteria.get("communicate_info") or ()),
        split=split,
        source=source,
        script=None,
        expert_turns=1,
        assertions=tuple(criteria.get("nl_assertions") or ()),
        **asked,
    )
    return replace(task, expert_turns=len(faultless_dialogue(domain, task)[1]))


def _asked(
    domain: Domain, record: dict[str, Any], criteria: dict[str, Any], task_id: str
) -> dict[str, Any]:
    """What τ² judges a task by, as fields of `Task`. Raises InputError for what is not obeyed here,
    so that no task is easier or harder than the benchmark's."""
    actions, start = criteria.get("actions"), record.get("initial_state")
    basis = tuple(_TAU2_BASIS if criteria.get("reward_basis") is None else criteria["reward_basis"])
    checks = tuple(
        Check(c["func_name"], c.get("arguments") or {}, c.get("env_type", "assistant"),
              c.get("assert_value", True))
        for c in criteria.get("env_assertions") or ()
    )
    theirs = [a["name"] for a in actions or () if a.get("requestor") == "user"]
    refused = {
        "initial_state": list(starts.problems_of(domain, start or {})),
        "env_assertions": [p for c in checks if (p := starts.problem_of_check(domain, c))],
        "reward_basis": [name for name in basis if name not in BASES],
        "actions of the user": [name for name in theirs if name not in domain.tools_of("user")],
        "evaluation_criteria": sorted(set(criteria) - _CRITERIA),
    }
    for name, found in refused.items():
        if found:
            raise InputError(f"{task_id}: {name} {dumps(found)[:200]}: this domain cannot obey"
                             " it; leave the task out of tasks.json")
    gold = None if actions is None else tuple(
        GoldAction(
            a["name"], a.get("arguments") or {},
            None if a.get("compare_args") is None else tuple(a["compare_args"]),
            a.get("requestor", "assistant"),
        )
        for a in actions
    )
    return {"actions": gold, "reward_basis": basis, "initial_state": start, "checks": checks}


def _user_of(domain: Domain, calls: list[Call]) -> str:
    """Whose account the calls are about; empty if they do not tell."""
    state = domain.new_state()
    for call in calls:
        if call.name.startswith("find_user_id"):
            found = domain.call(state, call.name, call.kwargs)
            if not isinstance(found, Refusal):
                return found
        if "user_id" in call.kwargs:
            return str(call.kwargs["user_id"])
        order = domain.database.get("orders", {}).get(str(call.kwargs.get("order_id")))
        if order:
            return order["user_id"]
    return ""


def instruction_of(scenario: Mapping[str, Any]) -> str:
    """The user's hidden text of a τ²-bench task, from its `user_scenario`: a paragraph a part."""
    told = scenario["instructions"]
    if isinstance(told, str):
        parts = [scenario.get("persona"), told]
    else:
        parts = [scenario.get("persona"), *(
            told.get(k) for k in
            ("reason_for_call", "known_info", "unknown_info", "task_instructions")
        )]
    return "\n\n".join(part for part in parts if part)
