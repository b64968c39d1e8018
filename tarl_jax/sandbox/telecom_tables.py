"""What telecom's tools share: how the carrier's records are found, and bills are added to."""

from __future__ import annotations

from typing import Any

from tarl_jax.sandbox.domain import Record, State, ToolError
from tarl_jax.sandbox.telecom_records import BILL, LINE_ITEM

TODAY = "2025-02-25"
# The first letter of an id -> its table, and how a missing record is told.
KINDS = {"L": ("lines", "Line"), "D": ("devices", "Device"), "B": ("bills", "Bill"),
          "C": ("customers", "Customer"), "P": ("plans", "Plan")}  # fmt: skip


def customer_of(db: State, phone_number: Any) -> Record:
    """Whose contact number, or the number of whose line, it is. Raises ToolError for nobody's."""
    for customer in db.table("customers").values():
        lines = (find(db, "L", line_id) for line_id in customer["line_ids"])
        if customer["phone_number"] == phone_number or any(
            line["phone_number"] == phone_number for line in lines
        ):
            return customer
    raise ToolError(f"Customer with phone number {phone_number} not found")


def find(db: State, letter: str, key: Any) -> Record:
    """The record of an id, in the table of KINDS. Raises ToolError for none."""
    table, name = KINDS[letter]
    record = db.get(table, key) if isinstance(key, str) else None
    if record is None:
        raise ToolError(f"{name} with ID {key} not found")
    return record


def customer_by_id(db: State, customer_id: Any) -> Record:
    """The customer. Raises ToolError for none."""
    return find(db, "C", customer_id)


def line_of(db: State, customer_id: Any, line_id: Any) -> Record:
    """A line of the customer, read only."""
    if line_id not in customer_by_id(db, customer_id)["line_ids"]:
        raise ToolError(f"Line {line_id} not found for customer {customer_id}")
    return find(db, "L", line_id)


def awaiting(db: State, customer: Record) -> list[Record]:
    """The customer's bills that a payment request is out for."""
    bills = (find(db, "B", bill_id) for bill_id in customer["bill_ids"])
    return [bill for bill in bills if bill["status"] == "Awaiting Payment"]


def add_bill(db: State, bill_id: str, customer_id: str, fields: Record) -> None:
    """A bill of nothing yet. Raises ToolError for fields that are not a bill's."""
    bill = {"bill_id": bill_id, "customer_id": customer_id, "total_due": 0, **fields}
    db.add("bills", bill_id, BILL.read(bill))
    db.edit("customers", customer_id)["bill_ids"].append(bill_id)


def add_item(db: State, bill_id: str, amount: float, description: str) -> None:
    """Puts something on a bill."""
    bill = db.edit("bills", bill_id)
    bill["line_items"].append(LINE_ITEM.read({
        "description": description, "amount": amount, "date": TODAY,
        "item_type": "Credit" if amount < 0 else "Charge",
    }))
    bill["total_due"] += amount
