"""τ²-bench's telecom domain: the carrier's tools, where its tasks start, what checks their end.

Written from what the benchmark's own tools answered to recorded calls; the user's phone is in
`telecom_phone.py`, the records in `telecom_records.py`. It is 25 February 2025 there.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import count
from typing import Any

from tarl_jax.sandbox import telecom_phone
from tarl_jax.sandbox.domain import Database, Domain, Record, State, ToolError, make_tool
from tarl_jax.sandbox.dual_control import UserSide
from tarl_jax.sandbox.telecom_phone_tools import Phone
from tarl_jax.sandbox.telecom_records import BILL, LINE_ITEM, USER

TODAY = "2025-02-25"
_THIS_MONTH_ENDS = "2025-02-28"
_LAST_MONTH = {
    "period_start": "2025-01-01", "period_end": "2025-01-31", "issue_date": "2025-01-01",
    "due_date": "2025-01-15",
}  # fmt: skip
_NEXT_MONTH = {
    "period_start": "2025-03-01", "period_end": "2025-03-31", "issue_date": "2025-03-01",
    "due_date": "2025-03-15",
}  # fmt: skip
# The first letter of an id -> its table, and how a missing record is told.
_KINDS = {"L": ("lines", "Line"), "D": ("devices", "Device"), "B": ("bills", "Bill"),
          "C": ("customers", "Customer"), "P": ("plans", "Plan")}  # fmt: skip


def telecom_domain(database: Database, policy: str = "", name: str = "telecom") -> Domain:
    """The domain over `database`, made by `telecom_records.typed`.

    name: "telecom-workflow" has another policy, and the same tools.
    """
    writes: dict[Callable[..., str], bool] = {  # tool -> may it change the state?
        get_customer_by_phone: False,
        get_customer_by_id: False,
        get_customer_by_name: False,
        get_details_by_id: False,
        suspend_line: True,
        resume_line: True,
        get_bills_for_customer: False,
        send_payment_request: True,
        get_data_usage: False,
        enable_roaming: True,
        disable_roaming: True,
        transfer_to_human_agents: False,
        refuel_data: True,
    }
    phone = Phone()
    user = UserSide(
        tools=phone.tools, tables=(USER,), sync=sync,
        functions={"user": phone.functions, "assistant": {
            "set_data_usage": set_data_usage,
            "suspend_line_for_overdue_bill": suspend_line_for_overdue_bill,
        }},
        checks={"user": telecom_phone.CHECKS, "assistant": {
            "assert_data_refueling_amount": assert_data_refueling_amount,
            "assert_line_status": assert_line_status,
            "assert_overdue_bill_exists": assert_overdue_bill_exists,
            "assert_no_overdue_bill": assert_no_overdue_bill,
        }},
    )  # fmt: skip
    tools = [make_tool(function, write=write) for function, write in writes.items()]
    return Domain(name, policy, database, tools, rules="tau2", user=user)


def sync(db: State) -> None:
    """What the phone feels of the carrier's line, and the carrier of the user's payment."""
    around = db.get(USER, "surroundings") or {}
    number = around["phone_number"]
    if number is None:
        return
    line = next((one for one in db.table("lines").values() if one["phone_number"] == number), None)
    if line is None:
        raise ToolError(f"Line with phone number {number} not found")
    plan = _find(db, "P", line["plan_id"])
    request = around["payment_request"]
    if request is not None and request["paid"]:
        _find(db, "B", request["bill_id"])
        db.edit("bills", request["bill_id"])["status"] = "Paid"
        request = None
    if request is None and (asked := _awaiting(db, customer_of(db, number))):
        request = {"bill_id": asked[0]["bill_id"], "amount_due": asked[0]["total_due"],
                   "paid": False}
    limit = plan["data_limit_gb"] + line["data_refueling_gb"]
    telecom_phone.note(db, "surroundings", {
        "line_active": line["status"] == "Active",
        "roaming_allowed": line["roaming_enabled"],
        "mobile_data_usage_exceeded": line["data_used_gb"] >= limit,
        "payment_request": request,
    })


# --- reading --------------------------------------------------------------------------------------


def get_customer_by_phone(db: State, phone_number: str) -> str:
    """Find the customer whose contact number, or the number of one of whose lines, this is.

    Args:
        phone_number: The phone number, such as '555-123-2002'.
    """
    return json.dumps(customer_of(db, phone_number))


def get_customer_by_id(db: State, customer_id: str) -> str:
    """Get a customer's record: contact, status, lines, bills and payment methods.

    Args:
        customer_id: The customer id, such as 'C1001'.
    """
    return json.dumps(_customer(db, customer_id))


def get_customer_by_name(db: State, full_name: str, dob: str) -> str:
    """Find customers by name and date of birth; both must be right.

    Args:
        full_name: First and last name.
        dob: The date of birth, such as '1985-06-15'.
    """
    found = [c for c in db.table("customers").values()
             if c["full_name"].lower() == full_name.lower() and c["date_of_birth"] == dob]
    return json.dumps(found)


def get_details_by_id(db: State, id: str) -> str:
    """Get the record of a customer, line, device, bill or plan.

    Args:
        id: Its id, which begins with C, L, D, B or P.
    """
    letter = next((letter for letter in _KINDS if id.startswith(letter)), None)
    if letter is None:
        raise ToolError(f"Unknown ID format or type: {id}")
    return json.dumps(_find(db, letter, id))


def get_bills_for_customer(db: State, customer_id: str, limit: int = 12) -> str:
    """List a customer's bills, the newest first.

    Args:
        customer_id: The customer id.
        limit: How many bills at most.
    """
    bills = [_find(db, "B", bill_id) for bill_id in _customer(db, customer_id)["bill_ids"]]
    bills.sort(key=lambda bill: bill["issue_date"], reverse=True)
    return json.dumps(bills[:limit])


def get_data_usage(db: State, customer_id: str, line_id: str) -> str:
    """Tell how much data a line has used in this billing cycle, its limit, and what was refueled.

    Args:
        customer_id: The customer who owns the line.
        line_id: The line id, such as 'L1002'.
    """
    line = _line(db, customer_id, line_id)
    plan = _find(db, "P", line["plan_id"])
    return json.dumps({  # Quirk: the numbers are texts.
        "line_id": line_id,
        "data_used_gb": str(line["data_used_gb"]),
        "data_limit_gb": str(plan["data_limit_gb"]),
        "data_refueling_gb": str(line["data_refueling_gb"]),
        "cycle_end_date": _THIS_MONTH_ENDS,
    })


# --- writing --------------------------------------------------------------------------------------


def suspend_line(db: State, customer_id: str, line_id: str, reason: str) -> str:
    """Suspend a line that is active, for six months at most.

    Args:
        customer_id: The customer who owns the line.
        line_id: The line to suspend.
        reason: Why it is suspended.
    """
    if _line(db, customer_id, line_id)["status"] != "Active":
        raise ToolError("Line must be active to suspend")
    line = db.edit("lines", line_id)
    line |= {"status": "Suspended", "suspension_start_date": TODAY}
    message = "Line suspended successfully. $5/month holding fee will apply."
    return json.dumps({"message": message, "line": line})


def resume_line(db: State, customer_id: str, line_id: str) -> str:
    """Make a line active again that is suspended or waits for its activation.

    Args:
        customer_id: The customer who owns the line.
        line_id: The line to resume.
    """
    if _line(db, customer_id, line_id)["status"] not in ("Suspended", "Pending Activation"):
        raise ToolError("Line must be suspended to resume")
    line = db.edit("lines", line_id)
    line |= {"status": "Active", "suspension_start_date": None}
    return json.dumps({"message": "Line resumed successfully", "line": line})


def send_payment_request(db: State, customer_id: str, bill_id: str) -> str:
    """Ask the customer to pay a bill. One request at a time; look first whether it is paid already.

    Args:
        customer_id: The customer who owns the bill.
        bill_id: The bill to be paid.
    """
    customer = _customer(db, customer_id)
    if _awaiting(db, customer):
        raise ToolError("A bill is already awaiting payment for this customer")
    if bill_id not in customer["bill_ids"]:
        raise ToolError(f"Bill {bill_id} not found for customer {customer_id}")
    _find(db, "B", bill_id)
    db.edit("bills", bill_id)["status"] = "Awaiting Payment"
    return f"Payment request sent to the customer for bill {bill_id}"


def enable_roaming(db: State, customer_id: str, line_id: str) -> str:
    """Let a line use networks abroad.

    Args:
        customer_id: The customer who owns the line.
        line_id: The line.
    """
    return _set_roaming(db, customer_id, line_id, True)


def disable_roaming(db: State, customer_id: str, line_id: str) -> str:
    """Forbid a line networks abroad.

    Args:
        customer_id: The customer who owns the line.
        line_id: The line.
    """
    return _set_roaming(db, customer_id, line_id, False)


def transfer_to_human_agents(db: State, summary: str) -> str:
    """Hand the user over to a human agent: if the user insists, or nothing here solves the problem.

    Args:
        summary: The user's problem in short.
    """
    return "Transfer successful"


def refuel_data(db: State, customer_id: str, line_id: str, gb_amount: float) -> str:
    """Add data to a line, which the next bill charges at the plan's price.

    Args:
        customer_id: The customer who owns the line.
        line_id: The line.
        gb_amount: How many gigabytes.
    """
    price_of = _line(db, customer_id, line_id)["plan_id"]
    if gb_amount <= 0:
        raise ToolError("Refuel amount must be positive")
    price = _find(db, "P", price_of)["data_refueling_price_per_gb"]
    charge = gb_amount * price
    line = db.edit("lines", line_id)
    line["data_refueling_gb"] += gb_amount
    _charge(db, customer_id, charge, f"Data refueling: {gb_amount} GB at ${price}/GB")
    message = f"Successfully added {gb_amount} GB of data for line {line_id} for ${charge:.2f}"
    return json.dumps({
        "message": message, "new_data_refueling_gb": str(line["data_refueling_gb"]),
        "charge": str(charge),
    })


# --- what makes a task's start --------------------------------------------------------------------


def set_data_usage(db: State, customer_id: str, line_id: str, data_used_gb: float) -> None:
    _line(db, customer_id, line_id)
    db.edit("lines", line_id)["data_used_gb"] = data_used_gb


def suspend_line_for_overdue_bill(
    db: State, customer_id: str, line_id: str, new_bill_id: str, contract_ended: bool
) -> None:
    line = _find(db, "L", line_id)
    if line["status"] != "Active":
        raise ToolError("Line must be active to suspend for unpaid bill")
    price = _find(db, "P", line["plan_id"])["price_per_month"]
    if price <= 0:
        raise ToolError("Amount must be positive for overdue bill")
    bills = [_find(db, "B", bill_id) for bill_id in _customer(db, customer_id)["bill_ids"]]
    if any(bill["status"] == "Overdue" for bill in bills):
        raise ToolError("Customer already has an overdue bill")
    _add_bill(db, new_bill_id, customer_id, _LAST_MONTH | {"status": "Overdue"})
    _add_item(db, new_bill_id, price, f"Charge for line {line_id}")
    line = db.edit("lines", line_id)
    line |= {"status": "Suspended", "suspension_start_date": TODAY}
    if contract_ended:
        line["contract_end_date"] = _LAST_MONTH["period_end"]


# --- what checks its end --------------------------------------------------------------------------


def assert_data_refueling_amount(
    db: State, customer_id: str, line_id: str, expected_amount: float
) -> bool:
    return abs(_line(db, customer_id, line_id)["data_refueling_gb"] - expected_amount) < 1e-6


def assert_line_status(db: State, customer_id: str, line_id: str, expected_status: str) -> bool:
    return _line(db, customer_id, line_id)["status"] == expected_status


def assert_overdue_bill_exists(db: State, customer_id: str, overdue_bill_id: str) -> bool:
    if overdue_bill_id not in _customer(db, customer_id)["bill_ids"]:
        raise ToolError(f"Overdue bill {overdue_bill_id} not found")
    if _find(db, "B", overdue_bill_id)["status"] != "Overdue":
        raise ToolError(f"Overdue bill {overdue_bill_id} is not overdue")
    return True


def assert_no_overdue_bill(db: State, overdue_bill_id: str) -> bool:
    bill = db.get("bills", overdue_bill_id)
    return bill is None or bill["status"] == "Paid"


# --- shared ---------------------------------------------------------------------------------------


def customer_of(db: State, phone_number: Any) -> Record:
    """Whose contact number, or the number of whose line, it is. Raises ToolError for nobody's."""
    for customer in db.table("customers").values():
        lines = (_find(db, "L", line_id) for line_id in customer["line_ids"])
        if customer["phone_number"] == phone_number or any(
            line["phone_number"] == phone_number for line in lines
        ):
            return customer
    raise ToolError(f"Customer with phone number {phone_number} not found")


def _find(db: State, letter: str, key: Any) -> Record:
    table, name = _KINDS[letter]
    record = db.get(table, key) if isinstance(key, str) else None
    if record is None:
        raise ToolError(f"{name} with ID {key} not found")
    return record


def _customer(db: State, customer_id: Any) -> Record:
    return _find(db, "C", customer_id)


def _line(db: State, customer_id: Any, line_id: Any) -> Record:
    """A line of the customer, read only."""
    if line_id not in _customer(db, customer_id)["line_ids"]:
        raise ToolError(f"Line {line_id} not found for customer {customer_id}")
    return _find(db, "L", line_id)


def _awaiting(db: State, customer: Record) -> list[Record]:
    bills = (_find(db, "B", bill_id) for bill_id in customer["bill_ids"])
    return [bill for bill in bills if bill["status"] == "Awaiting Payment"]


def _set_roaming(db: State, customer_id: str, line_id: str, on: bool) -> str:
    word = "enabled" if on else "disabled"
    if _line(db, customer_id, line_id)["roaming_enabled"] == on:
        return f"Roaming was already {word}"
    db.edit("lines", line_id)["roaming_enabled"] = on
    return f"Roaming {word} successfully"


def _charge(db: State, customer_id: str, amount: float, description: str) -> None:
    """Adds to the customer's draft bill, and makes one if there is none."""
    bills = (_find(db, "B", bill_id) for bill_id in _customer(db, customer_id)["bill_ids"])
    draft: str = next((bill["bill_id"] for bill in bills if bill["status"] == "Draft"), "")
    if not draft:
        # The benchmark draws a random id; these count.
        draft = next(new for n in count(1) if (new := f"B{n:08d}") not in db.table("bills"))
        _add_bill(db, draft, customer_id, _NEXT_MONTH | {"status": "Draft"})
    _add_item(db, draft, amount, description)


def _add_bill(db: State, bill_id: str, customer_id: str, fields: Record) -> None:
    bill = {"bill_id": bill_id, "customer_id": customer_id, "total_due": 0, **fields}
    db.add("bills", bill_id, BILL.read(bill))
    db.edit("customers", customer_id)["bill_ids"].append(bill_id)


def _add_item(db: State, bill_id: str, amount: float, description: str) -> None:
    bill = db.edit("bills", bill_id)
    bill["line_items"].append(LINE_ITEM.read({
        "description": description, "amount": amount, "date": TODAY,
        "item_type": "Credit" if amount < 0 else "Charge",
    }))
    bill["total_due"] += amount
