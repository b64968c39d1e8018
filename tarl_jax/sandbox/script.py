"""What a scripted user wants: requests, with the calls that fulfil them.

A script is the JSON-like `Task.script`: who the user is and a list of requests. A request may be
forbidden by the shop's policy (`denial`), and the user may change its mind when asked to confirm
(`change`); `then` is the wish after the change, None where the request is dropped.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from tarl_jax.types import Call

KINDS = ("cancel", "return", "exchange", "modify", "payment")
READS = ("ask_status", "ask_total")  # kinds of requests that are served without a write
DENIALS = ("", "status", "reason", "unavailable", "balance")
CHANGES = ("", "drop", "option", "item")
REASONS = ("no longer needed", "ordered by mistake")
FORBIDDEN_REASONS = ("found it cheaper", "takes too long")


@dataclasses.dataclass(frozen=True)
class Request:
    """One wish about one order.

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
      denial: why the policy forbids the request; empty if it allows it.
      change: how the user changes its mind at the confirmation; empty if it does not.
      then: the wish after the change.
      aside: what the user says beside it that asks for nothing.
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
    def final(self) -> Request | None:
        """The wish that stands at the end, or None if the user drops it."""
        return self.then if self.change else self

    @property
    def gold(self) -> Call | None:
        """The write call that fulfils the final wish; None if nothing may be written."""
        wish = self.final
        if self.denial or wish is None or wish.kind in READS:
            return None
        return write_call(wish)

    def to_json(self) -> dict[str, Any]:
        data = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        if not self.aside:
            del data["aside"]
        return {**data, "then": self.then.to_json() if self.then else None}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Request:
        then = data.get("then")
        return cls(**{**data, "then": cls.from_json(then) if then else None})


@dataclasses.dataclass(frozen=True)
class Script:
    """The user and its requests.

    identify: "email" or "name"; what the user remembers.
    eager: whether the opening already says who the user is.
    """

    first_name: str
    last_name: str
    email: str
    zip: str
    identify: str
    eager: bool
    requests: tuple[Request, ...]

    def to_json(self) -> dict[str, Any]:
        requests = [request.to_json() for request in self.requests]
        return {**dataclasses.asdict(self), "requests": requests}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Script:
        return cls(**{**data, "requests": tuple(Request.from_json(r) for r in data["requests"])})


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
