"""The retail tools as τ²-bench answers them; what they are for is told by `retail.py`.

Written from what the benchmark's own tools answered to recorded calls. Records are those of
`retail.py`, each with every field of its type (`typed_records.py`). What differs from τ-bench is
listed in docs/sandbox.md; a quirk is a fault of the benchmark that is kept.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from tarl_jax.sandbox import retail
from tarl_jax.sandbox.common_tau2 import calculate
from tarl_jax.sandbox.common_tools import transfer_to_human_agents
from tarl_jax.sandbox.domain import Database, Domain, Record, State, ToolError, make_tool
from tarl_jax.sandbox.typed_records import (
    Model,
    dict_of,
    flag,
    list_of,
    number,
    optional,
    tagged,
    text,
)

Strings = list_of(text)
ADDRESS = Model("UserAddress", dict.fromkeys(
    ("address1", "address2", "city", "country", "state", "zip"), text
))
NAME = Model("UserName", {"first_name": text, "last_name": text})
PAYMENT_METHOD = tagged("source", {
    "credit_card": Model("CreditCard", dict.fromkeys(("source", "id", "brand", "last_four"), text)),
    "paypal": Model("Paypal", {"source": text, "id": text}),
    "gift_card": Model("GiftCard", {"source": text, "id": text, "balance": number}),
})
VARIANT = Model("Variant", {
    "item_id": text, "options": dict_of(text), "available": flag, "price": number,
})
ITEM = Model("OrderItem", {
    "name": text, "product_id": text, "item_id": text, "price": number, "options": dict_of(text),
})
TABLES = {
    "users": Model("User", {
        "user_id": text, "name": NAME, "address": ADDRESS, "email": text,
        "payment_methods": dict_of(PAYMENT_METHOD), "orders": Strings,
    }),
    "orders": Model("Order", {
        "order_id": text, "user_id": text, "address": ADDRESS, "items": list_of(ITEM),
        "status": text,
        "fulfillments": list_of(
            Model("OrderFullfilment", {"tracking_id": Strings, "item_ids": Strings})
        ),
        "payment_history": list_of(Model("OrderPayment", {
            "transaction_type": text, "amount": number, "payment_method_id": text,
        })),
        "cancel_reason": optional(text), "exchange_items": optional(Strings),
        "exchange_new_items": optional(Strings), "exchange_payment_method_id": optional(text),
        "exchange_price_difference": optional(number), "return_items": optional(Strings),
        "return_payment_method_id": optional(text),
    }),
    "products": Model("Product", {"name": text, "product_id": text, "variants": dict_of(VARIANT)}),
}


def retail_domain(database: Database, policy: str = "") -> Domain:
    """The domain over `database`, whose records must be those of `TABLES`."""
    writes: dict[Callable[..., str], bool] = {  # tool -> may it change the state?
        calculate: False,
        cancel_pending_order: True,
        exchange_delivered_order_items: True,
        find_user_id_by_name_zip: False,
        find_user_id_by_email: False,
        get_order_details: False,
        get_product_details: False,
        get_item_details: False,
        get_user_details: False,
        retail.list_all_product_types: False,
        modify_pending_order_address: True,
        modify_pending_order_items: True,
        modify_pending_order_payment: True,
        modify_user_address: True,
        return_delivered_order_items: True,
        transfer_to_human_agents: False,
    }
    described = retail.retail_domain(database).tools
    tools = [make_tool(function, write=write, like=described.get(function.__name__))
             for function, write in writes.items()]
    return Domain("retail", policy, database, tools, rules="tau2")


# --- reading --------------------------------------------------------------------------------------


def find_user_id_by_email(db: State, email: str) -> str:
    for user_id, user in db.table("users").items():
        if user["email"].lower() == email.lower():
            return user_id
    raise ToolError("User not found")


def find_user_id_by_name_zip(db: State, first_name: str, last_name: str, zip: str) -> str:
    for user_id, user in db.table("users").items():
        if (
            user["name"]["first_name"].lower() == first_name.lower()
            and user["name"]["last_name"].lower() == last_name.lower()
            and user["address"]["zip"] == zip
        ):
            return user_id
    raise ToolError("User not found")


def get_order_details(db: State, order_id: str) -> str:
    return json.dumps(_find(db, "orders", order_id))


def get_product_details(db: State, product_id: str) -> str:
    return json.dumps(_find(db, "products", product_id))


def get_item_details(db: State, item_id: str) -> str:
    """Get the inventory details of an item: its options, its price, and whether it is available.

    Args:
        item_id: The item id, such as '6086499569'. It is not a product id.
    """
    for product in db.table("products").values():
        if item_id in product["variants"]:
            return json.dumps(product["variants"][item_id])
    raise ToolError("Item not found")


def get_user_details(db: State, user_id: str) -> str:
    return json.dumps(_find(db, "users", user_id))


# --- writing --------------------------------------------------------------------------------------


def cancel_pending_order(db: State, order_id: str, reason: str) -> str:
    order = _find(db, "orders", order_id)
    if order["status"] != "pending":
        raise ToolError("Non-pending order cannot be cancelled")
    if reason not in {"no longer needed", "ordered by mistake"}:
        raise ToolError("Invalid reason")
    order = db.edit("orders", order_id)
    # Quirk: every entry, so also what a change of the payment method refunded.
    refunds = [payment | {"transaction_type": "refund"} for payment in order["payment_history"]]
    for refund in refunds:
        _charge(db, order["user_id"], refund["payment_method_id"], -refund["amount"])
    order["status"] = "cancelled"
    order["cancel_reason"] = reason
    order["payment_history"] += refunds
    return json.dumps(order)


def exchange_delivered_order_items(
    db: State, order_id: str, item_ids: list[str], new_item_ids: list[str], payment_method_id: str
) -> str:
    order = _find(db, "orders", order_id)
    if order["status"] != "delivered":
        raise ToolError("Non-delivered order cannot be exchanged")
    missing = _first_missing(order, item_ids)
    if missing is not None:
        raise ToolError(f"Number of {missing} not found.")
    if len(item_ids) != len(new_item_ids):
        raise ToolError("The number of items to be exchanged should match.")
    difference = 0
    for item_id, new_item_id in zip(item_ids, new_item_ids, strict=False):
        item = _item(order, item_id)
        difference += _variant(db, item["product_id"], new_item_id)["price"] - item["price"]
    difference = round(difference, 2)
    method = _payment_method(db, order["user_id"], payment_method_id)
    if method["source"] == "gift_card" and method["balance"] < difference:
        raise ToolError("Insufficient gift card balance to pay for the price difference")
    order = db.edit("orders", order_id)
    order["status"] = "exchange requested"
    # Quirk: sorting forgets which new item stands for which old one.
    order["exchange_items"] = sorted(item_ids)
    order["exchange_new_items"] = sorted(new_item_ids)
    order["exchange_payment_method_id"] = payment_method_id
    order["exchange_price_difference"] = difference
    return json.dumps(order)


def modify_pending_order_address(
    db: State, order_id: str,
    address1: str, address2: str, city: str, state: str, country: str, zip: str,
) -> str:  # fmt: skip
    _find_open(db, order_id)
    address = _address(address1, address2, city, state, country, zip)
    order = db.edit("orders", order_id)
    order["address"] = address
    return json.dumps(order)


def modify_pending_order_items(
    db: State, order_id: str, item_ids: list[str], new_item_ids: list[str], payment_method_id: str
) -> str:
    order = _find(db, "orders", order_id)
    if order["status"] != "pending":
        raise ToolError("Non-pending order cannot be modified")
    missing = _first_missing(order, item_ids)
    if missing is not None:
        raise ToolError(f"{missing} not found")
    if len(item_ids) != len(new_item_ids):
        raise ToolError("The number of items to be exchanged should match")
    difference, variant = 0, {}
    for item_id, new_item_id in zip(item_ids, new_item_ids, strict=False):
        if item_id == new_item_id:
            raise ToolError("The new item id should be different from the old item id")
        item = _item(order, item_id)
        variant = _variant(db, item["product_id"], new_item_id)
        difference += variant["price"] - item["price"]
    method = _payment_method(db, order["user_id"], payment_method_id)
    if method["source"] == "gift_card" and method["balance"] < difference:
        raise ToolError("Insufficient gift card balance to pay for the new item")
    order = db.edit("orders", order_id)
    kind = "payment" if difference > 0 else "refund"
    order["payment_history"].append(_transaction(kind, abs(difference), payment_method_id))
    _charge(db, order["user_id"], payment_method_id, difference)
    for item_id, new_item_id in zip(item_ids, new_item_ids, strict=False):
        item = _item(order, item_id)
        # Quirk: every item takes the price and the options of the last one.
        item |= {"item_id": new_item_id, "price": variant["price"]}
        item["options"] = dict(variant["options"])
    order["status"] = "pending (item modified)"
    return json.dumps(order)


def modify_pending_order_payment(db: State, order_id: str, payment_method_id: str) -> str:
    order = _find_open(db, order_id)
    method = _payment_method(db, order["user_id"], payment_method_id)
    history = order["payment_history"]
    if len(history) != 1 or history[0]["transaction_type"] != "payment":
        raise ToolError("There should be exactly one payment for a pending order")
    old_id, amount = history[0]["payment_method_id"], history[0]["amount"]
    if old_id == payment_method_id:
        raise ToolError("The new payment method should be different from the current one")
    if method["source"] == "gift_card" and method["balance"] < amount:
        raise ToolError("Insufficient gift card balance to pay for the order")
    order = db.edit("orders", order_id)
    order["payment_history"] += [
        _transaction("payment", amount, payment_method_id),
        _transaction("refund", amount, old_id),
    ]
    _charge(db, order["user_id"], payment_method_id, amount)
    _charge(db, order["user_id"], old_id, -amount)
    return json.dumps(order)


def modify_user_address(
    db: State, user_id: str,
    address1: str, address2: str, city: str, state: str, country: str, zip: str,
) -> str:  # fmt: skip
    _find(db, "users", user_id)
    address = _address(address1, address2, city, state, country, zip)
    user = db.edit("users", user_id)
    user["address"] = address
    return json.dumps(user)


def return_delivered_order_items(
    db: State, order_id: str, item_ids: list[str], payment_method_id: str
) -> str:
    order = _find(db, "orders", order_id)
    if order["status"] != "delivered":
        raise ToolError("Non-delivered order cannot be returned")
    method = _payment_method(db, order["user_id"], payment_method_id)
    paid_with = order["payment_history"][0]["payment_method_id"]
    if method["source"] != "gift_card" and payment_method_id != paid_with:
        raise ToolError("Payment method should be the original payment method")
    if _first_missing(order, item_ids) is not None:
        raise ToolError("Some item not found")
    order = db.edit("orders", order_id)
    order["status"] = "return requested"
    order["return_items"] = sorted(item_ids)
    order["return_payment_method_id"] = payment_method_id
    return json.dumps(order)


# --- shared by the tools --------------------------------------------------------------------------


def _find(db: State, table: str, key: str) -> Record:
    record = db.get(table, key)
    if record is None:
        raise ToolError(f"{table.removesuffix('s').capitalize()} not found")
    return record


def _find_open(db: State, order_id: str) -> Record:
    """An order that may still change: pending, also after its items were modified."""
    order = _find(db, "orders", order_id)
    if "pending" not in order["status"]:
        raise ToolError("Non-pending order cannot be modified")
    return order


def _first_missing(order: Record, item_ids: Any) -> Any:
    """The first of the ids that is asked for more often than the order holds it, or None."""
    held = [item["item_id"] for item in order["items"]]
    return next((i for i in item_ids if item_ids.count(i) > held.count(i)), None)


def _item(order: Record, item_id: str) -> Record:
    return next(item for item in order["items"] if item["item_id"] == item_id)


def _variant(db: State, product_id: str, item_id: str) -> Record:
    """A variant that is available, read only."""
    variants = _find(db, "products", product_id)["variants"]
    if item_id not in variants:
        raise ToolError("Variant not found")
    if not variants[item_id]["available"]:
        raise ToolError(f"New item {item_id} not found or available")
    return variants[item_id]


def _payment_method(db: State, user_id: str, method_id: str) -> Record:
    methods = _find(db, "users", user_id)["payment_methods"]
    if method_id not in methods:
        raise ToolError("Payment method not found")
    return methods[method_id]


def _charge(db: State, user_id: str, method_id: str, amount: float) -> None:
    """Takes dollars off a gift card, or puts them on if negative; other methods hold no balance."""
    if _payment_method(db, user_id, method_id)["source"] == "gift_card":
        card = db.edit("users", user_id)["payment_methods"][method_id]
        card["balance"] = round(card["balance"] - amount, 2)


def _transaction(kind: str, amount: float, method_id: str) -> Record:
    return {
        "transaction_type": kind, "amount": float(amount), "payment_method_id": method_id,
    }


def _address(
    address1: str, address2: str, city: str, state: str, country: str, zip: str
) -> Record:
    return ADDRESS.read({
        "address1": address1, "address2": address2, "city": city, "country": country,
        "state": state, "zip": zip,
    })
