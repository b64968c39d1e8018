"""τ²-bench's telecom domain: the carrier's tools, where its tasks start, what checks their end.

Written from what the benchmark's own tools answered to recorded calls; the user's phone is in
`telecom_phone.py`, the records in `telecom_records.py`. It is 25 February 2025 there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from itertools import count
from typing import Any

from tarl_jax.sandbox import telecom_phone, telecom_starts
from tarl_jax.sandbox.domain import Database, Domain, State, ToolError, make_tool
from tarl_jax.sandbox.dual_control import UserSide
from tarl_jax.sandbox.telecom_phone_tools import Phone
from tarl_jax.sandbox.telecom_records import USER
from tarl_jax.sandbox.telecom_tables import (
    KINDS,
    TODAY,
    add_bill,
    add_item,
    awaiting,
    customer_by_id,
    customer_of,
    find,
    line_of,
)

_THIS_MONTH_ENDS = "2025-02-28"
_NEXT_MONTH = {
    "period_start": "2025-03-01", "period_end": "2025-03-31", "issue_date": "2025-03-01",
    "due_date": "2025-03-15",
}  # fmt: skip


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
        tools=phone.tools, tables=(USER,), sync=partial(sync, _owners(database)),
        functions={"user": phone.functions, "assistant": telecom_starts.STARTS},
        checks={"user": telecom_phone.CHECKS, "assistant": telecom_starts.CHECKS},
    )  # fmt: skip
    tools = [make_tool(function, write=write) for function, write in writes.items()]
    return Domain(name, policy, database, tools, rules="tau2", user=user)


def sync(owners: Mapping[Any, tuple[str, str]], db: State) -> None:
    """What the phone feels of the carrier's line, and the carrier of the user's payment.

    owners: by phone number its line and its customer, which no call changes.
    """
    around = db.get(USER, "surroundings") or {}
    number = around["phone_number"]
    if number is None:
        return
    if number not in owners:
        raise ToolError(f"Line with phone number {number} not found")
    line_id, customer_id = owners[number]
    line = find(db, "L", line_id)
    plan = find(db, "P", line["plan_id"])
    request = around["payment_request"]
    if request is not None and request["paid"]:
        find(db, "B", request["bill_id"])
        db.edit("bills", request["bill_id"])["status"] = "Paid"
        request = None
    if request is None and (asked := awaiting(db, customer_by_id(db, customer_id))):
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
    return json.dumps(customer_by_id(db, customer_id))


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
    letter = next((letter for letter in KINDS if id.startswith(letter)), None)
    if letter is None:
        raise ToolError(f"Unknown ID format or type: {id}")
    return json.dumps(find(db, letter, id))


def get_bills_for_customer(db: State, customer_id: str, limit: int = 12) -> str:
    """List a customer's bills, the newest first.

    Args:
        customer_id: The customer id.
        limit: How many bills at most.
    """
    bills = [find(db, "B", bill_id) for bill_id in customer_by_id(db, customer_id)["bill_ids"]]
    bills.sort(key=lambda bill: bill["issue_date"], reverse=True)
    return json.dumps(bills[:limit])


def get_data_usage(db: State, customer_id: str, line_id: str) -> str:
    """Tell how much data a line has used in this billing cycle, its limit, and what was refueled.

    Args:
        customer_id: The customer who owns the line.
        line_id: The line id, such as 'L1002'.
    """
    line = line_of(db, customer_id, line_id)
    plan = find(db, "P", line["plan_id"])
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
    if line_of(db, customer_id, line_id)["status"] != "Active":
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
    if line_of(db, customer_id, line_id)["status"] not in ("Suspended", "Pending Activation"):
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
    customer = customer_by_id(db, customer_id)
    if awaiting(db, customer):
        raise ToolError("A bill is already awaiting payment for this customer")
    if bill_id not in customer["bill_ids"]:
        raise ToolError(f"Bill {bill_id} not found for customer {customer_id}")
    find(db, "B", bill_id)
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
    price_of = line_of(db, customer_id, line_id)["plan_id"]
    if gb_amount <= 0:
        raise ToolError("Refuel amount must be positive")
    price = find(db, "P", price_of)["data_refueling_price_per_gb"]
    charge = gb_amount * price
    line = db.edit("lines", line_id)
    line["data_refueling_gb"] += gb_amount
    _charge(db, customer_id, charge, f"Data refueling: {gb_amount} GB at ${price}/GB")
    message = f"Successfully added {gb_amount} GB of data for line {line_id} for ${charge:.2f}"
    return json.dumps({
        "message": message, "new_data_refueling_gb": str(line["data_refueling_gb"]),
        "charge": str(charge),
    })


# --- shared ---------------------------------------------------------------------------------------


def _owners(database: Database) -> dict[Any, tuple[str, str]]:
    """The line of each phone number, and the customer whom the number finds ("": none)."""
    lines = database["lines"]
    customers: dict[Any, str] = {}
    for customer_id, customer in database["customers"].items():
        numbers = (lines[key]["phone_number"] for key in customer["line_ids"] if key in lines)
        for number in (customer["phone_number"], *numbers):
            customers.setdefault(number, customer_id)
    found: dict[Any, tuple[str, str]] = {}
    for line_id, line in lines.items():
        number = line["phone_number"]
        found.setdefault(number, (line_id, customers.get(number, "")))
    return found


def _set_roaming(db: State, customer_id: str, line_id: str, on: bool) -> str:
    word = "enabled" if on else "disabled"
    if line_of(db, customer_id, line_id)["roaming_enabled"] == on:
        return f"Roaming was already {word}"
    db.edit("lines", line_id)["roaming_enabled"] = on
    return f"Roaming {word} successfully"


def _charge(db: State, customer_id: str, amount: float, description: str) -> None:
    """Adds to the customer's draft bill, and makes one if there is none."""
    bills = (find(db, "B", bill_id) for bill_id in customer_by_id(db, customer_id)["bill_ids"])
    draft: str = next((bill["bill_id"] for bill in bills if bill["status"] == "Draft"), "")
    if not draft:
        # The benchmark draws a random id; these count.
        draft = next(new for n in count(1) if (new := f"B{n:08d}") not in db.table("bills"))
        add_bill(db, draft, customer_id, _NEXT_MONTH | {"status": "Draft"})
    add_item(db, draft, amount, description)
