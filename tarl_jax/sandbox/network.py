"""The embedded carrier of phones: a synthetic telecom database made from a seed.

Tables and fields are those of τ²-bench's telecom domain (`telecom_records.py`), its tools
`telecom.py`'s, and it is the same day there; ids are short, and customers have one line or two.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from tarl_jax.config import InputError, ShopConfig
from tarl_jax.sandbox.domain import Database
from tarl_jax.sandbox.shop import ADDRESSES, FIRST_NAMES, LAST_NAMES
from tarl_jax.sandbox.telecom_records import typed

POLICY = Path(__file__).with_name("network_policy.md")  # the rules that the agent must follow
# Name, gigabytes a month, dollars a month, dollars for a gigabyte more.
PLANS = {"P1": ("Small", 5, 20, 3), "P2": ("Middle", 15, 40, 2), "P3": ("Large", 50, 60, 1)}
_MOST_LINES = 2


def make_network(config: ShopConfig, branch: int = 0) -> Database:
    """The database, a pure function of the arguments; `shop.num_users` counts customers.

    branch: carriers of one seed have the same plans; each branch has its own customers.
    Raises ValueError where there are not as many names as customers, or not so many ids.
    """
    limit = min(len(FIRST_NAMES) * len(LAST_NAMES), 900 // _MOST_LINES)
    if not 2 <= config.num_users <= limit:
        raise InputError(f"shop.num_users = {config.num_users}: must be between 2 and {limit}")
    rng = random.Random(f"network-{config.seed}-{branch}")
    names = rng.sample([(f, n) for f in FIRST_NAMES for n in LAST_NAMES], config.num_users)
    ids = iter(rng.sample(range(100, 1000), _MOST_LINES * config.num_users))
    numbers = iter(rng.sample(range(1000, 10_000), _MOST_LINES * config.num_users))
    customers, lines, bills = [], [], []
    for place, (first, last) in enumerate(names, 100):
        owned = [
            _make_line(rng, f"L{next(ids)}", f"555-{next(numbers)}")
            for _ in range(rng.randint(1, min(_MOST_LINES, config.orders_per_user)))
        ]
        lines += owned
        street, city, state, zip_code = rng.choice(ADDRESSES)
        bill = _paid_bill(f"B{place}", f"C{place}", rng)
        bills.append(bill)
        customers.append({
            "customer_id": f"C{place}", "full_name": f"{first} {last}",
            "date_of_birth": f"19{rng.randrange(50, 100)}-0{rng.randrange(1, 10)}-11",
            "email": f"{first.lower()}.{last.lower()}@mail.com",
            "phone_number": owned[0]["phone_number"], "account_status": "Active",
            "address": {"street": street, "city": city, "state": state, "zip_code": zip_code},
            "line_ids": [line["line_id"] for line in owned], "bill_ids": [bill["bill_id"]],
            "created_at": "2024-01-01 12:00:00",
        })
    plans = [
        {"plan_id": key, "name": name, "data_limit_gb": gb, "price_per_month": month,
         "data_refueling_price_per_gb": more}
        for key, (name, gb, month, more) in PLANS.items()
    ]
    carrier = {"plans": plans, "customers": customers, "lines": lines, "bills": bills}
    return typed(carrier, {}, "the embedded network")


def _make_line(rng: random.Random, line_id: str, number: str) -> dict[str, Any]:
    plan = rng.choice(list(PLANS))
    return {
        "line_id": line_id, "phone_number": number, "status": "Active", "plan_id": plan,
        "data_used_gb": rng.randrange(1, PLANS[plan][1]),
        "roaming_enabled": rng.random() < 0.5, "contract_end_date": "2026-12-31",
    }


def _paid_bill(bill_id: str, customer_id: str, rng: random.Random) -> dict[str, Any]:
    return {
        "bill_id": bill_id, "customer_id": customer_id, "period_start": "2025-01-01",
        "period_end": "2025-01-31", "issue_date": "2025-01-05", "due_date": "2025-01-20",
        "total_due": rng.choice([plan[2] for plan in PLANS.values()]), "status": "Paid",
    }
