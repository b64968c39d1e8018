"""The retail domain of τ-bench: 16 tools over users, orders and products.

Written from the benchmark's data: its tool schemas, and what its own tools answered to recorded
calls. Outputs and state hashes equal the recorded ones, quirks included; only a missing argument
is refused in other words. Records look so (prices and amounts in dollars, int or float):

- users: name {first_name, last_name}, address, email, payment_methods {id: {source, id, balance
  where source is "gift_card"}}, orders [order id];
- orders: order_id, user_id, address, items [{name, product_id, item_id, price, options}],
  fulfillments, status, payment_history [{transaction_type, amount, payment_method_id}, ...];
- products: name, product_id, variants {item id: {item_id, options, available, price}}.
"""

import json
from collections import Counter
from collections.abc import Callable
from functools import cached_property
from typing import Literal

from tarl_jax.sandbox.common_tools import (
    calculate,
    find_payment_method,
    find_record,
    think,
    transfer_to_human_agents,
)
from tarl_jax.sandbox.domain import Database, Domain, Record, State, ToolError, make_tool


def retail_domain(database: Database, policy: str = "") -> Domain:
    """The retail domain over `database`, which must not be written from here on."""
    finder = _UserFinder(database)
    writes: dict[Callable[..., str], bool] = {  # tool -> may it change the state?
        calculate: False,
        cancel_pending_order: True,
        exchange_delivered_order_items: True,
        finder.find_user_id_by_email: False,
        finder.find_user_id_by_name_zip: False,
        get_order_details: False,
        get_product_details: False,
        get_user_details: False,
        list_all_product_types: False,
        modify_pending_order_address: True,
        modify_pending_order_items: True,
        modify_pending_order_payment: True,
        modify_user_address: True,
        return_delivered_order_items: True,
        think: False,
        transfer_to_human_agents: False,
    }
    tools = [make_tool(function, write=write) for function, write in writes.items()]
    return Domain("retail", policy, database, tools)


# --- reading --------------------------------------------------------------------------------------


class _UserFinder:
    """Finds users through indexes of what no tool can change: emails and names."""

    def __init__(self, database: Database):
        self._users = database["users"]

    @cached_property
    def _by_email(self) -> dict[str, str]:
        # Reversed, so that of two users with one email the first stays.
        return {user["email"].lower(): user_id for user_id, user in reversed(self._users.items())}

    @cached_property
    def _by_name(self) -> dict[tuple[str, str], list[str]]:
        index: dict[tuple[str, str], list[str]] = {}
        for user_id, user in self._users.items():
            name = user["name"]
            key = (name["first_name"].lower(), name["last_name"].lower())
            index.setdefault(key, []).append(user_id)
        return index

    def find_user_id_by_email(self, db: State, email: str) -> str:
        """Find the user id that belongs to an email. Answers with an error if there is none.

        Args:
            email: The user's email, such as 'something@example.com'.
        """
        if email.lower() not in self._by_email:
            raise ToolError("user not found")
        return self._by_email[email.lower()]

    def find_user_id_by_name_zip(self, db: State, first_name: str, last_name: str, zip: str) -> str:
        """Find a user id by first name, last name and zip code. Answers with an error if there is
        none. Search by email first; use this when that fails or the user does not recall the email.

        Args:
            first_name: The customer's first name, such as 'John'.
            last_name: The customer's last name, such as 'Doe'.
            zip: The customer's zip code, such as '12345'.
        """
        for user_id in self._by_name.get((first_name.lower(), last_name.lower()), []):
            # The zip code is read from the state: the address may have been modified.
            if find_record(db, "users", user_id)["address"]["zip"] == zip:
                return user_id
        raise ToolError("user not found")


def get_order_details(db: State, order_id: str) -> str:
    """Get the status and the details of an order.

    Args:
        order_id: The order id, such as '#W0000000'. It begins with a '#'.
    """
    return json.dumps(find_record(db, "orders", order_id))


def get_product_details(db: State, product_id: str) -> str:
    """Get the inventory details of a product.

    Args:
        product_id: The product id, such as '6086499569'. It is not an item id.
    """
    return json.dumps(find_record(db, "products", product_id))


def get_user_details(db: State, user_id: str) -> str:
    """Get the details of a user, with the ids of their orders.

    Args:
        user_id: The user id, such as 'sara_doe_496'.
    """
    return json.dumps(find_record(db, "users", user_id))


def list_all_product_types(db: State) -> str:
    """List the name and the product id of every product type. A product type comes in several items
    with unique item ids and different options.
    """
    products = db.table("products")
    names = {product["name"]: product["product_id"] for product in products.values()}
    return json.dumps(names, sort_keys=True)


# --- writing --------------------------------------------------------------------------------------


def cancel_pending_order(
    db: State, order_id: str, reason: Literal["no longer needed", "ordered by mistake"]
) -> str:
    """Cancel a pending order; one that is processed or delivered cannot be cancelled. Explain the
    cancellation and get the user's explicit confirmation (yes/no) first. The order becomes
    'cancelled' and its payment is refunded: to a gift card at once, otherwise in 5-7 business days.
    Returns the order after the cancellation.

    Args:
        order_id: The order id, such as '#W0000000'. It begins with a '#'.
        reason: Why it is cancelled: 'no longer needed' or 'ordered by mistake'.
    """
    order = find_record(db, "orders", order_id)
    if order["status"] != "pending":
        raise ToolError("non-pending order cannot be cancelled")
    if reason not in ("no longer needed", "ordered by mistake"):
        raise ToolError("invalid reason")
    order = db.edit("orders", order_id)
    # Every entry, so also what a change of payment method refunded; no recorded call tells.
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
    """Exchange items of a delivered order for others of the same product type. A delivered order
    can be returned or exchanged only once. Explain the exchange and get the user's explicit
    confirmation (yes/no) first.

    Args:
        order_id: The order id, such as '#W0000000'. It begins with a '#'.
        item_ids: The ids of the items to exchange, such as '1008292230'. An id may occur twice.
        new_item_ids: The ids of the items wanted instead, such as '1008292230', each in the place
            of the item that it replaces and of the same product. An id may occur twice.
        payment_method_id: What pays or receives the price difference, such as 'gift_card_0000000'.
    """
    order = find_record(db, "orders", order_id)
    if order["status"] != "delivered":
        raise ToolError("non-delivered order cannot be exchanged")
    _, difference = _replacements(db, order, item_ids, new_item_ids)
    difference = round(difference, 2)
    method = find_payment_method(db, order["user_id"], payment_method_id)
    if method["source"] == "gift_card" and method["balance"] < difference:
        raise ToolError("insufficient gift card balance to pay for the price difference")
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
    """Change the shipping address of a pending order. Explain the change and get the user's
    explicit confirmation (yes/no) first.

    Args:
        order_id: The order id, such as '#W0000000'. It begins with a '#'.
        address1: The first line of the address, such as '123 Main St'.
        address2: The second line of the address, such as 'Apt 1' or ''.
        city: The city, such as 'San Francisco'.
        state: The state, such as 'CA'.
        country: The country, such as 'USA'.
        zip: The zip code, such as '12345'.
    """
    _pending(db, order_id)
    order = db.edit("orders", order_id)
    order["address"] = _address(address1, address2, city, state, country, zip)
    return json.dumps(order)


def modify_pending_order_items(
    db: State, order_id: str, item_ids: list[str], new_item_ids: list[str], payment_method_id: str
) -> str:
    """Change items of a pending order for others of the same product type. This can be done once
    for an order. Explain the change and get the user's explicit confirmation (yes/no) first.

    Args:
        order_id: The order id, such as '#W0000000'. It begins with a '#'.
        item_ids: The ids of the items to change, such as '1008292230'. An id may occur twice.
        new_item_ids: The ids of the items wanted instead, such as '1008292230', each in the place
            of the item that it replaces and of the same product. An id may occur twice.
        payment_method_id: What pays or receives the price difference, such as 'gift_card_0000000'.
    """
    order = _pending(db, order_id)
    variants, difference = _replacements(db, order, item_ids, new_item_ids)
    method = find_payment_method(db, order["user_id"], payment_method_id)
    if method["source"] == "gift_card" and method["balance"] < difference:
        raise ToolError("insufficient gift card balance to pay for the new item")
    order = db.edit("orders", order_id)
    # Quirk: the amount is not rounded, and an equal exchange is a refund of 0.
    kind = "payment" if difference > 0 else "refund"
    order["payment_history"].append(_transaction(kind, abs(difference), payment_method_id))
    _charge(db, order["user_id"], payment_method_id, difference)
    for item_id, variant in zip(item_ids, variants, strict=True):
        item = next(item for item in order["items"] if item["item_id"] == item_id)
        item |= {"item_id": variant["item_id"], "price": variant["price"]}
        item["options"] = dict(variant["options"])  # the variant belongs to the base database
    order["status"] = "pending (item modified)"
    return json.dumps(order)


def modify_pending_order_payment(db: State, order_id: str, payment_method_id: str) -> str:
    """Change the payment method of a pending order. Explain the change and get the user's explicit
    confirmation (yes/no) first.

    Args:
        order_id: The order id, such as '#W0000000'. It begins with a '#'.
        payment_method_id: What pays instead, such as 'gift_card_0000000'.
    """
    order = _pending(db, order_id)
    method = find_payment_method(db, order["user_id"], payment_method_id)
    if len(order["payment_history"]) != 1:
        raise ToolError("there should be exactly one payment for a pending order")
    old_id, amount = (order["payment_history"][0][k] for k in ("payment_method_id", "amount"))
    if old_id == payment_method_id:
        raise ToolError("the new payment method should be different from the current one")
    if method["source"] == "gift_card" and method["balance"] < amount:
        raise ToolError("insufficient gift card balance to pay for the order")
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
    """Change the default address of a user. Explain the change and get the user's explicit
    confirmation (yes/no) first.

    Args:
        user_id: The user id, such as 'sara_doe_496'.
        address1: The first line of the address, such as '123 Main St'.
        address2: The second line of the address, such as 'Apt 1' or ''.
        city: The city, such as 'San Francisco'.
        state: The state, such as 'CA'.
        country: The country, such as 'USA'.
        zip: The zip code, such as '12345'.
    """
    find_record(db, "users", user_id)
    user = db.edit("users", user_id)
    user["address"] = _address(address1, address2, city, state, country, zip)
    return json.dumps(user)


def return_delivered_order_items(
    db: State, order_id: str, item_ids: list[str], payment_method_id: str
) -> str:
    """Return items of a delivered order, whose status becomes 'return requested'. Explain the
    return and get the user's explicit confirmation (yes/no) first. The user then gets an email that
    says how and where to return the items.

    Args:
        order_id: The order id, such as '#W0000000'. It begins with a '#'.
        item_ids: The ids of the items to return, such as '1008292230'. An id may occur twice.
        payment_method_id: What receives the refund: what paid for the order, or a gift card.
    """
    order = find_record(db, "orders", order_id)
    if order["status"] != "delivered":
        raise ToolError("non-delivered order cannot be returned")
    method = find_payment_method(db, order["user_id"], payment_method_id)
    paid_with = order["payment_history"][0]["payment_method_id"]
    if method["source"] != "gift_card" and payment_method_id != paid_with:
        raise ToolError(
            "payment method should be either the original payment method or a gift card"
        )
    if _not_in_order(order, item_ids):
        raise ToolError("some item not found")
    order = db.edit("orders", order_id)
    order["status"] = "return requested"
    order["return_items"] = sorted(item_ids)
    order["return_payment_method_id"] = payment_method_id
    return json.dumps(order)


# --- shared by the tools --------------------------------------------------------------------------


def _pending(db: State, order_id: str) -> Record:
    order = find_record(db, "orders", order_id)
    if order["status"] != "pending":  # so a "pending (item modified)" order is closed to changes
        raise ToolError("non-pending order cannot be modified")
    return order


def _not_in_order(order: Record, item_ids: list[str]) -> list[str]:
    """The ids asked for more often than the order holds them, as they first occur."""
    return list(Counter(item_ids) - Counter(item["item_id"] for item in order["items"]))


def _replacements(
    db: State, order: Record, item_ids: list[str], new_item_ids: list[str]
) -> tuple[list[Record], float]:
    """The variants that replace the items, and how much more they cost, in dollars, unrounded."""
    missing = _not_in_order(order, item_ids)
    if missing:
        raise ToolError(f"{missing[0]} not found")
    if len(item_ids) != len(new_item_ids):
        raise ToolError("the number of items to be exchanged should match")
    variants, difference = [], 0
    for item_id, new_item_id in zip(item_ids, new_item_ids, strict=True):
        item = next(item for item in order["items"] if item["item_id"] == item_id)
        variant = find_record(db, "products", item["product_id"])["variants"].get(new_item_id)
        if variant is None or not variant["available"]:
            raise ToolError(f"new item {new_item_id} not found or available")
        variants.append(variant)
        difference += variant["price"] - item["price"]
    return variants, difference


def _charge(db: State, user_id: str, method_id: str, amount: float) -> None:
    """Takes dollars off a gift card, or puts them on if negative; other methods hold no balance."""
    if find_payment_method(db, user_id, method_id)["source"] == "gift_card":
        card = db.edit("users", user_id)["payment_methods"][method_id]
        card["balance"] = round(card["balance"] - amount, 2)


def _transaction(kind: str, amount: float, method_id: str) -> Record:
    return {"transaction_type": kind, "amount": amount, "payment_method_id": method_id}


def _address(*lines: str) -> Record:
    fields = ("address1", "address2", "city", "state", "country", "zip")
    return dict(zip(fields, lines, strict=True))
