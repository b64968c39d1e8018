"""The retail policy as code, apart from the tools: it reads the records and its own books only.

The tools enforce: the order's status, the two reasons, that an item is in the order and a new one
is an available variant of its product, where a refund may go, that a new payment method is another
one, that a gift card covers a single call. They do not enforce, and only this module does:

- an order and a payment method belong to the customer who asks;
- a list of items names at least one, and a new item is another one than the old;
- a gift card covers all exchanges of a conversation together (the tool looks, and takes nothing).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple

from tarl_jax.sandbox.domain import Database, Record
from tarl_jax.types import Call

REASONS = ("no longer needed", "ordered by mistake")
_NEEDED_STATUS = {
    "cancel_pending_order": "pending",
    "modify_pending_order_items": "pending",
    "modify_pending_order_payment": "pending",
    "modify_pending_order_address": "pending",
    "return_delivered_order_items": "delivered",
    "exchange_delivered_order_items": "delivered",
}


class Violation(NamedTuple):
    """A rule that a call breaks.

    ground: one of script.DENIALS where a user may ask for such a thing, else "account", "items",
    "method", "missing" or "rule". text: in words.
    """

    ground: str
    text: str


def violations(database: Database, user_id: str, calls: Iterable[Call]) -> list[Violation]:
    """What the policy has against these writes, made in this order for this customer."""
    books = _Books(database, user_id)
    return [violation for call in calls for violation in books.enter(call)]


class _Books:
    """Statuses and gift cards as the calls so far would leave them."""

    def __init__(self, database: Database, user_id: str):
        self.database = database
        self.user_id = user_id
        self.methods: dict[str, Record] = database["users"][user_id]["payment_methods"]
        self.balance = {m: r["balance"] for m, r in self.methods.items() if "balance" in r}
        self.status: dict[str, str] = {}
        self.repaid: set[str] = set()  # orders whose payment method was changed

    def enter(self, call: Call) -> list[Violation]:
        """What is wrong with a call; if nothing is, it is booked."""
        if call.name == "modify_user_address":
            own = call.kwargs["user_id"] == self.user_id
            return [] if own else [Violation("account", "the address of another customer")]
        needed = _NEEDED_STATUS.get(call.name)
        if needed is None:
            return [Violation("rule", f"the policy knows no action {call.name}")]
        order = self.database["orders"].get(call.kwargs["order_id"])
        if order is None:
            return [Violation("missing", f"there is no order {call.kwargs['order_id']}")]
        if order["user_id"] != self.user_id:
            return [Violation("account", f"{order['order_id']} is the order of somebody else")]
        found = []
        status = self.status.get(order["order_id"], order["status"])
        if status != needed:
            found.append(Violation("status", f"{order['order_id']} is {status}"))
        method = call.kwargs.get("payment_method_id")
        if method is not None and method not in self.methods:
            return [*found, Violation("method", f"{method} is not the customer's")]
        found += self._particular(call, order, method)
        return found

    def _particular(self, call: Call, order: Record, method: str | None) -> list[Violation]:
        order_id, paid = order["order_id"], order["payment_history"][0]
        found: list[Violation] = []
        if call.name == "cancel_pending_order":
            if call.kwargs["reason"] not in REASONS:
                found.append(Violation("reason", f"the reason {call.kwargs['reason']!r}"))
            self.status[order_id] = "cancelled"
        elif call.name == "modify_pending_order_payment":
            if order_id in self.repaid or method == paid["payment_method_id"]:
                found.append(Violation("method", f"{order_id} is paid with {method} already"))
            found += self._take(method, paid["amount"])
            self.repaid.add(order_id)
        elif "item_ids" in call.kwargs:
            found += self._items(call, order)
            if call.name == "return_delivered_order_items":
                if method != paid["payment_method_id"] and method not in self.balance:
                    found.append(Violation("method", f"a refund to {method}, which did not pay"))
                self.status[order_id] = "return requested"
            elif not found:
                found += self._take(method, self._difference(call, order))
                exchange = call.name.startswith("exchange")
                self.status[order_id] = "exchange requested" if exchange else "item modified"
        return found

    def _take(self, method: str | None, amount: float) -> list[Violation]:
        """Charges a gift card (other methods hold no balance); a refund counts for nothing."""
        if method not in self.balance or amount <= 0:
            return []
        if self.balance[method] < amount:
            return [Violation("balance", f"{method} does not hold {amount}")]
        self.balance[method] -= amount
        return []

    def _items(self, call: Call, order: Record) -> list[Violation]:
        items = call.kwargs["item_ids"]
        new_items = call.kwargs.get("new_item_ids")
        if not items or Counter(items) - Counter(i["item_id"] for i in order["items"]):
            return [Violation("items", f"not items of {order['order_id']}: {items}")]
        if new_items is None:
            return []
        if len(items) != len(new_items):
            return [Violation("items", f"{len(items)} items, {len(new_items)} new ones")]
        found = []
        for old, new in zip(items, new_items, strict=True):
            variant = self._variant(order, old, new)
            if variant is None or old == new:
                found.append(Violation("items", f"{new} is no other variant of {old}"))
            elif not variant["available"]:
                found.append(Violation("unavailable", f"{new} is not available"))
        return found

    def _difference(self, call: Call, order: Record) -> float:
        prices = {item["item_id"]: item["price"] for item in order["items"]}
        pairs = zip(call.kwargs["item_ids"], call.kwargs["new_item_ids"], strict=True)
        return sum(self._variant(order, old, new)["price"] - prices[old] for old, new in pairs)

    def _variant(self, order: Record, old: str, new: str) -> Any:
        product = next(i["product_id"] for i in order["items"] if i["item_id"] == old)
        return self.database["products"][product]["variants"].get(new)
