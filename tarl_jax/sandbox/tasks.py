"""Tasks of the embedded shop, made from a seed; and task files.

Every task made here is solved by the faultless clerk before it is handed out.
"""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path
from typing import Any

from tarl_jax.config import ShopConfig, TaskConfig
from tarl_jax.sandbox import phrases, shop
from tarl_jax.sandbox.clerk import FAULTLESS, play
from tarl_jax.sandbox.dialogue import Dialogue
from tarl_jax.sandbox.domain import Domain, Refusal
from tarl_jax.sandbox.script import FORBIDDEN_REASONS, REASONS, Request, Script
from tarl_jax.sandbox.user import ScriptedUser
from tarl_jax.sandbox.verifier import verify
from tarl_jax.types import Call, Task

_KIND_WEIGHTS = {
    "pending": {"cancel": 0.42, "modify": 0.38, "payment": 0.2},
    "delivered": {"return": 0.5, "exchange": 0.5},
}
_METHOD_WORDS = {"credit_card": "credit card", "paypal": "paypal", "gift_card": "gift card"}


def make_tasks(
    domain: Domain, shop_config: ShopConfig, config: TaskConfig, split: str
) -> list[Task]:
    """`num_train` or `num_held_out` distinct tasks; the splits share no user and no order.

    Raises ValueError if the shop is too small for that many, RuntimeError if a task could not be
    solved by the faultless clerk: that is a defect of the shop, not of the input.
    """
    if split not in ("train", "held_out"):
        raise ValueError(f"split {split!r}: choose 'train' or 'held_out'")
    held_out = shop.held_out_users(domain.database, shop_config)
    wanted = config.num_held_out if split == "held_out" else config.num_train
    users = [u for u in domain.database["users"] if (u in held_out) == (split == "held_out")]
    rng = random.Random(f"tasks-{config.seed}-{split}")
    tasks: list[Task] = []
    seen: set[str] = set()
    idle = 0
    attempts = 0
    while len(tasks) < wanted:
        attempts += 1
        if not users or attempts > 200 + 50 * wanted:
            raise ValueError(
                f"{len(users)} {split} users admit only {len(tasks)} of {wanted} distinct"
                f" tasks; lower tasks.num_{split}, or raise shop.num_users"
                " or tasks.max_idle"
            )
        script = _make_script(rng, domain.database, rng.choice(users), config)
        key = json.dumps(script.to_json())
        gold = tuple(r.gold for r in script.requests if r.gold)
        if not script.requests or key in seen or not _executable(domain, gold):
            continue
        if not gold:
            if idle + 1 > config.max_idle * wanted:
                continue
            idle += 1
        seen.add(key)
        tasks.append(_finish(domain, script, gold, f"{split}-{len(tasks)}", split))
    return tasks


def load_tasks(path: str | Path) -> list[Task]:
    """Reads JSON lines of `Task`; a broken line is a ValueError with file and line number."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"task file {path} does not exist")
    tasks = []
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                tasks.append(Task.from_json(json.loads(line)))
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{path}:{number}: not a task: {error}") from error
    if not tasks:
        raise ValueError(f"{path}: holds no task")
    return tasks


def save_tasks(path: str | Path, tasks: list[Task]) -> None:
    """Writes JSON lines that `load_tasks` reads."""
    Path(path).write_text("".join(json.dumps(t.to_json()) + "\n" for t in tasks), encoding="utf-8")


def _finish(
    domain: Domain, script: Script, gold: tuple[Call, ...], name: str, split: str
) -> Task:
    user_id = domain.call(
        domain.new_state(), "find_user_id_by_email", {"email": script.email}
    )
    task = Task(
        task_id=f"shop-{name}", user_id=user_id, instruction=_instruction(script),
        gold_calls=gold, outputs=(), split=split, source="shop", script=script.to_json(),
        expert_turns=1,
    )
    dialogue = Dialogue(task, domain, ScriptedUser(task, seed=0))
    turns = play(dialogue, FAULTLESS, seed=0)
    if not verify(domain, dialogue.state, [(c.name, dict(c.kwargs)) for c in gold]).success:
        raise RuntimeError(f"{task.task_id}: the faultless clerk fails; script {script.to_json()}")
    return dataclasses.replace(task, expert_turns=len(turns))


def _executable(domain: Domain, gold: tuple[Call, ...]) -> bool:
    """Whether all calls succeed in a row (two may draw on one gift card that covers only one)."""
    state = domain.new_state()
    answers = [domain.call(state, call.name, dict(call.kwargs)) for call in gold]
    return not any(isinstance(answer, Refusal) for answer in answers)


def _make_script(
    rng: random.Random, database: dict[str, dict[str, Any]], user_id: str, config: TaskConfig
) -> Script:
    user = database["users"][user_id]
    count = rng.choices(range(1, len(config.requests) + 1), config.requests)[0]
    requests: list[Request] = []
    for order_id in rng.sample(user["orders"], len(user["orders"])):
        if len(requests) == count:
            break
        order = database["orders"][order_id]
        forbidden = rng.random() < config.forbidden
        request = _make_request(rng, database, user, order, forbidden)
        if request and not request.denial and rng.random() < config.change_mind:
            request = _with_change(rng, database, order, request)
        if request:
            requests.append(request)
    return Script(
        first_name=user["name"]["first_name"],
        last_name=user["name"]["last_name"],
        email=user["email"],
        zip=user["address"]["zip"],
        identify=rng.choice(("email", "email", "name")),
        eager=rng.random() < 0.5,
        requests=tuple(requests),
    )


def _make_request(
    rng: random.Random,
    database: dict[str, dict[str, Any]],
    user: dict[str, Any],
    order: dict[str, Any],
    forbidden: bool,
) -> Request | None:
    """A request about `order`, allowed or forbidden; None if the order admits no such request."""
    status = order["status"]
    allowed = _KIND_WEIGHTS.get(status, {})
    if not forbidden:
        if not allowed:
            return None
        kind = rng.choices(list(allowed), list(allowed.values()))[0]
        return _request_of_kind(rng, database, user, order, kind, "")
    other = {k: w for s, ks in _KIND_WEIGHTS.items() if s != status for k, w in ks.items()}
    kinds = {"status": rng.choices(list(other), list(other.values()))[0]}
    if status == "pending":
        kinds |= {"reason": "cancel", "unavailable": "modify", "balance": "payment"}
    elif status == "delivered":
        kinds["unavailable"] = "exchange"
    for denial in rng.sample(list(kinds), len(kinds)):
        request = _request_of_kind(rng, database, user, order, kinds[denial], denial)
        if request:
            return request
    return None


def _request_of_kind(
    rng: random.Random,
    database: dict[str, dict[str, Any]],
    user: dict[str, Any],
    order: dict[str, Any],
    kind: str,
    denial: str,
) -> Request | None:
    if kind == "cancel":
        reasons = FORBIDDEN_REASONS if denial == "reason" else REASONS
        return Request("cancel", order["order_id"], reason=rng.choice(reasons), denial=denial)
    if kind == "payment":
        return _make_payment(rng, user, order, denial)
    return _make_item_request(rng, database, order, kind, rng.choice(order["items"]), denial)


def _make_payment(
    rng: random.Random, user: dict[str, Any], order: dict[str, Any], denial: str
) -> Request | None:
    paid = order["payment_history"][0]
    methods = []
    for method in user["payment_methods"].values():
        low = method["source"] == "gift_card" and method["balance"] < paid["amount"]
        fits = denial == "status" or low == (denial == "balance")
        if method["id"] != paid["payment_method_id"] and fits:
            methods.append(method)
    if not methods:
        return None
    method = rng.choice(methods)
    return Request(
        "payment", order["order_id"], method["id"], method=_METHOD_WORDS[method["source"]],
        denial=denial,
    )


def _make_item_request(
    rng: random.Random,
    database: dict[str, dict[str, Any]],
    order: dict[str, Any],
    kind: str,
    item: dict[str, Any],
    denial: str,
) -> Request | None:
    option = new_item_id = ""
    if kind != "return":
        target = _variant(rng, database, item, available=denial != "unavailable")
        if target is None:
            return None
        option = next(iter(target["options"].values()))
        new_item_id = target["item_id"]
    same = [i for i in order["items"] if i["product_id"] == item["product_id"]]
    precise = len(same) > 1 or rng.random() < 0.3
    value = next(iter(item["options"].values()))
    return Request(
        kind,
        order["order_id"],
        order["payment_history"][0]["payment_method_id"],
        item=f"{value} {item['name']}" if precise else item["name"],
        item_id=item["item_id"],
        product_id=item["product_id"],
        option=option,
        new_item_id=new_item_id,
        denial=denial,
    )


def _variant(
    rng: random.Random,
    database: dict[str, dict[str, Any]],
    item: dict[str, Any],
    available: bool,
    avoid: str | None = None,
) -> dict[str, Any] | None:
    variants = database["products"][item["product_id"]]["variants"].values()
    fit = [
        v for v in variants
        if v["available"] == available and v["item_id"] != item["item_id"]
        and avoid not in v["options"].values()
    ]
    return rng.choice(fit) if fit else None


def _with_change(
    rng: random.Random, database: dict[str, dict[str, Any]], order: dict[str, Any], request: Request
) -> Request:
    """The request with a change of mind, where it admits one."""
    fields = {f: getattr(request, f) for f in Request.__dataclass_fields__}
    change, then = "drop", None
    if request.kind in ("exchange", "modify") and rng.random() < 0.75:
        item = next(i for i in order["items"] if i["item_id"] == request.item_id)
        target = _variant(rng, database, item, available=True, avoid=request.option)
        if target is None:
            return request
        change = "option"
        option = next(iter(target["options"].values()))
        then = Request(**{**fields, "option": option, "new_item_id": target["item_id"]})
    elif request.kind == "return" and len(order["items"]) > 1 and rng.random() < 0.75:
        others = [i for i in order["items"] if i["item_id"] != request.item_id]
        change = "item"
        then = _make_item_request(rng, database, order, "return", rng.choice(others), "")
    return Request(**{**fields, "change": change, "then": then})


def _instruction(script: Script) -> str:
    """The hidden task in words, in tau-bench's manner."""
    known = f"email {script.email}" if script.identify == "email" else f"zip code {script.zip}"
    lines = [f"You are {script.first_name} {script.last_name}, {known}."]
    for request in script.requests:
        lines.append(_wish_text(request))
        if request.change == "drop":
            lines.append("When asked to confirm, you change your mind and drop it.")
        elif request.then:
            lines.append(f"When asked to confirm, you change your mind: {_wish_text(request.then)}")
    return " ".join(lines)


def _wish_text(wish: Request) -> str:
    return phrases.USER_REQUESTS[wish.kind][0].format(
        order=wish.order_id, item=wish.item, option=wish.option, method=wish.method,
        why=phrases.REASON_WORDS[wish.reason][0] if wish.reason else "",
    )
