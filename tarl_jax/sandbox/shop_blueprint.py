"""What a user of a shop might ask: requests about orders, allowed or not, drawn at random.

`tasks.make_tasks` draws them by the order, `sandbox.synthesis` by the tool that serves them; both
build a request in the same way.
"""

from __future__ import annotations

import random
from typing import Any

from tarl_jax.sandbox.shop_requests import FORBIDDEN_REASONS, READS, REASONS, Request

KIND_WEIGHTS = {
    "pending": {"cancel": 0.42, "modify": 0.38, "payment": 0.2},
    "delivered": {"return": 0.5, "exchange": 0.5},
}
_METHOD_WORDS = {"credit_card": "credit card", "paypal": "paypal", "gift_card": "gift card"}


def make_request(
    rng: random.Random,
    database: dict[str, dict[str, Any]],
    user: dict[str, Any],
    order: dict[str, Any],
    forbidden: bool,
) -> Request | None:
    """A request about `order`, allowed or forbidden; None if the order admits no such request."""
    status = order["status"]
    allowed = KIND_WEIGHTS.get(status, {})
    if not forbidden:
        if not allowed:
            return None
        kind = rng.choices(list(allowed), list(allowed.values()))[0]
        return request_of_kind(rng, database, user, order, kind, "")
    other = {k: w for s, ks in KIND_WEIGHTS.items() if s != status for k, w in ks.items()}
    kinds = {"status": rng.choices(list(other), list(other.values()))[0]}
    if status == "pending":
        kinds |= {"reason": "cancel", "unavailable": "modify", "balance": "payment"}
    elif status == "delivered":
        kinds["unavailable"] = "exchange"
    for denial in rng.sample(list(kinds), len(kinds)):
        request = request_of_kind(rng, database, user, order, kinds[denial], denial)
        if request:
            return request
    return None


def request_of_kind(
    rng: random.Random,
    database: dict[str, dict[str, Any]],
    user: dict[str, Any],
    order: dict[str, Any],
    kind: str,
    denial: str,
) -> Request | None:
    """A request that the policy forbids on the ground `denial`, or allows if that is empty.

    None if the order, whose status is taken to fit, admits none. `kind` is one of
    `shop_requests.KINDS` or `READS`.
    """
    if kind in READS:
        return Request(kind, order["order_id"])
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
        "payment", order["order_id"], method["id"], method=_method_words(user, method),
        denial=denial,
    )


def _method_words(user: dict[str, Any], method: dict[str, Any]) -> str:
    """How the user names a payment method: by its sort, or by its id if it has several of those."""
    same = [m for m in user["payment_methods"].values() if m["source"] == method["source"]]
    return _METHOD_WORDS[method["source"]] if len(same) == 1 else method["id"]


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
        option = option_words(target)
        new_item_id = target["item_id"]
    same = [i for i in order["items"] if i["product_id"] == item["product_id"]]
    precise = len(same) > 1 or rng.random() < 0.3
    return Request(
        kind,
        order["order_id"],
        order["payment_history"][0]["payment_method_id"],
        item=f"{option_words(item)} {item['name']}" if precise else item["name"],
        item_id=item["item_id"],
        product_id=item["product_id"],
        option=option,
        new_item_id=new_item_id,
        denial=denial,
    )


def option_words(item: dict[str, Any]) -> str:
    """How the user names an item's or a variant's options, e.g. "green"."""
    return " ".join(item["options"].values())


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
        and option_words(v) != avoid
    ]
    return rng.choice(fit) if fit else None


def with_change(
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
        option = option_words(target)
        then = Request(**{**fields, "option": option, "new_item_id": target["item_id"]})
    elif request.kind == "return" and len(order["items"]) > 1 and rng.random() < 0.75:
        others = [i for i in order["items"] if i["item_id"] != request.item_id]
        change = "item"
        then = _make_item_request(rng, database, order, "return", rng.choice(others), "")
    return Request(**{**fields, "change": change, "then": then})
