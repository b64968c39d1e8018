"""A small telecom database of our own: two customers, three lines, one phone."""

from tarl_jax.sandbox.telecom import telecom_domain
from tarl_jax.sandbox.telecom_records import typed

CARRIER = {
    "plans": [
        {"plan_id": "P1", "name": "Five", "data_limit_gb": 5, "price_per_month": 40,
         "data_refueling_price_per_gb": 2},
    ],
    "customers": [
        {"customer_id": "C2", "full_name": "Ada Ito", "date_of_birth": "1990-01-31",
         "email": "ada@mail.com", "phone_number": "801-1", "account_status": "Active",
         "address": {"street": "1 A St", "city": "Graz", "state": "ST", "zip_code": "801"},
         "line_ids": ["L2", "L1"], "bill_ids": ["B1"]},
        {"customer_id": "C1", "full_name": "Bo Lund", "date_of_birth": "1980-02-01",
         "email": "bo@mail.com", "phone_number": "801-3",
         "address": {"street": "2 A St", "city": "Graz", "state": "ST", "zip_code": "801"},
         "line_ids": ["L3"], "bill_ids": []},
    ],
    "lines": [
        {"line_id": line_id, "phone_number": number, "status": status, "plan_id": "P1",
         "data_used_gb": used}
        for line_id, number, status, used in (
            ("L2", "801-2", "Active", 1), ("L1", "801-1", "Suspended", 0),
            ("L3", "801-3", "Active", 9),
        )
    ],
    "bills": [
        {"bill_id": "B1", "customer_id": "C2", "period_start": "2025-01-01",
         "period_end": "2025-01-31", "issue_date": "2025-01-05", "total_due": 40,
         "due_date": "2025-01-20", "status": "Overdue"},
    ],
    "devices": [],
}
USER = {"surroundings": {"name": "Ada Ito", "phone_number": "801-2"}}


def small_telecom(user=USER):
    return telecom_domain(typed(CARRIER, user, "small"), "Mend phones.")
