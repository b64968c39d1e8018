"""What the users of the embedded shop ask for, and the calls that fulfil it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from tarl_jax.sandbox.desk import Wish
from tarl_jax.types import Call

KINDS = ("cancel", "return", "exchange", "modify", "payment")
READS = ("ask_status", "ask_total")  # kinds of requests that are served without a write
DENIALS = ("", "status", "reason", "unavailable", "balance")
CHANGES = ("", "drop", "option", "item")
REASONS = ("no longer needed", "ordered by mistake")
FORBIDDEN_REASONS = ("found it cheaper", "takes too long")


@dataclasses.dataclass(frozen=True)
class Request(Wish):
    """One wish about one order; `Wish` says what the last fields mean.

    Attributes:
      kind: one of KINDS, or of READS.
      order_id: the order, e.g. "#W123".
      payment_method_id: refunded or charged; the new one where `kind` is "payment".
      item: how the user names the item, e.g. "Mug" or "red Mug"; empty for cancel and payment.
      item_id: that item.
      product_id: its product.
      option: the wanted option of an exchange or modification, e.g. "green".
      new_item_id: the variant with that option.
      reason: of a cancellation.
      method: how the user names the new payment method, e.g. "gift card".
      denial: one of DENIALS.
      change: one of CHANGES.
    """

    kind: str
    order_id: str
    payment_method_id: str = ""
    item: str = ""
    item_id: str = ""
    product_id: str = ""
    option: str = ""
    new_item_id: str = ""
    reason: str = ""
    method: str = ""
    denial: str = ""
    change: str = ""
    then: Request | None = None
    aside: str = ""

    @property
    def record_id(self) -> str:
        return self.order_id

    @property
    def call(self) -> Call | None:
        return None if self.kind in READS else write_call(self)


def write_call(wish: Request) -> Call:
    """The tool call that a wish asks for, allowed or not."""
    order, method = {"order_id": wish.order_id}, {"payment_method_id": wish.payment_method_id}
    items = {"item_ids": [wish.item_id]}
    new_items = {"new_item_ids": [wish.new_item_id]}
    match wish.kind:
        case "cancel":
            return Call("cancel_pending_order", {**order, "reason": wish.reason})
        case "return":
            return Call("return_delivered_order_items", {**order, **items, **method})
        case "exchange":
            return Call("exchange_delivered_order_items", {**order, **items, **new_items, **method})
        case "modify":
            return Call("modify_pending_order_items", {**order, **items, **new_items, **method})
        case "payment":
            return Call("modify_pending_order_payment", {**order, **method})
    raise ValueError(f"request kind {wish.kind!r}: expected one of {', '.join(KINDS)}")


def right_answer(kind: str, order: Mapping[str, Any]) -> str:
    """What a request of READS asks of an order's record: its status, or its total in dollars."""
    return str(order["status"] if kind == "ask_status" else order["payment_history"][0]["amount"])
