"""What telecom's tasks do to the carrier at their start, and ask of it at their end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tarl_jax.sandbox.domain import State, ToolError
from tarl_jax.sandbox.telecom_tables import (
    TODAY,
    add_bill,
    add_item,
    customer_by_id,
    find,
    line_of,
)

_LAST_MONTH = {
    "period_start": "2025-01-01", "period_end": "2025-01-31", "issue_date": "2025-01-01",
    "due_date": "2025-01-15",
}  # fmt: skip


def set_data_usage(db: State, customer_id: str, line_id: str, data_used_gb: float) -> None:
    line_of(db, customer_id, line_id)
    db.edit("lines", line_id)["data_used_gb"] = data_used_gb


def suspend_line_for_overdue_bill(
    db: State, customer_id: str, line_id: str, new_bill_id: str, contract_ended: bool
) -> None:
    line = find(db, "L", line_id)
    if line["status"] != "Active":
        raise ToolError("Line must be active to suspend for unpaid bill")
    price = find(db, "P", line["plan_id"])["price_per_month"]
    if price <= 0:
        raise ToolError("Amount must be positive for overdue bill")
    bills = [find(db, "B", bill_id) for bill_id in customer_by_id(db, customer_id)["bill_ids"]]
    if any(bill["status"] == "Overdue" for bill in bills):
        raise ToolError("Customer already has an overdue bill")
    add_bill(db, new_bill_id, customer_id, _LAST_MONTH | {"status": "Overdue"})
    add_item(db, new_bill_id, price, f"Charge for line {line_id}")
    line = db.edit("lines", line_id)
    line |= {"status": "Suspended", "suspension_start_date": TODAY}
    if contract_ended:
        line["contract_end_date"] = _LAST_MONTH["period_end"]


# --- what checks its end --------------------------------------------------------------------------


def assert_data_refueling_amount(
    db: State, customer_id: str, line_id: str, expected_amount: float
) -> bool:
    return abs(line_of(db, customer_id, line_id)["data_refueling_gb"] - expected_amount) < 1e-6


def assert_line_status(db: State, customer_id: str, line_id: str, expected_status: str) -> bool:
    return line_of(db, customer_id, line_id)["status"] == expected_status


def assert_overdue_bill_exists(db: State, customer_id: str, overdue_bill_id: str) -> bool:
    if overdue_bill_id not in customer_by_id(db, customer_id)["bill_ids"]:
        raise ToolError(f"Overdue bill {overdue_bill_id} not found")
    if find(db, "B", overdue_bill_id)["status"] != "Overdue":
        raise ToolError(f"Overdue bill {overdue_bill_id} is not overdue")
    return True


def assert_no_overdue_bill(db: State, overdue_bill_id: str) -> bool:
    bill = db.get("bills", overdue_bill_id)
    return bill is None or bill["status"] == "Paid"


STARTS: dict[str, Callable[..., Any]] = {
    "set_data_usage": set_data_usage,
    "suspend_line_for_overdue_bill": suspend_line_for_overdue_bill,
}
CHECKS: dict[str, Callable[..., Any]] = {
    "assert_data_refueling_amount": assert_data_refueling_amount,
    "assert_line_status": assert_line_status,
    "assert_overdue_bill_exists": assert_overdue_bill_exists,
    "assert_no_overdue_bill": assert_no_overdue_bill,
}
