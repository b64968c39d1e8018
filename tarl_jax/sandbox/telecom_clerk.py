"""The clerk that mends phones: the expert of telecom, and a teacher that errs.

It finds what is broken by looking, one look after the other, and only uses what the dialogue has
shown by then, so that a policy can learn to do the same.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

from tarl_jax.config import ClerkConfig
from tarl_jax.sandbox.dialogue import TRANSFER, Dialogue, Observation
from tarl_jax.sandbox.domain import Record
from tarl_jax.sandbox.telecom_phrases import (
    ASK_PAY,
    ASK_REFUEL,
    ASK_WHO,
    ASKS,
    TRANSFERRED,
    TRY_AGAIN,
)
from tarl_jax.sandbox.telecom_tables import TODAY
from tarl_jax.sandbox.telecom_user import TelecomUser, complaint_of
from tarl_jax.types import Call, Task

Turns = Generator[Call | str, Observation, Any]

_PHONE = re.compile(r"\d[\d-]*\d")
_MESSAGING = {"app_name": "messaging"}
REFUEL_GB = 2.0  # the policy's most


@dataclass(frozen=True)
class Sign:
    """What an answer of the user may show to be wrong.

    mark: in the answer; wrong if it is found, or with `missing` if it is not.
    mends: what the user is then asked for, in turn; none: the clerk hands over.
    abroad: whether it matters abroad alone.
    """

    mark: str
    mends: tuple[str, ...]
    missing: bool = False
    abroad: bool = False
    permission: str = ""

    def found(self, answer: str) -> bool:
        return (self.mark in answer) != self.missing


# What the user is asked to look at, in turn, and what that may show. Only where the complaint is
# among those named.
LOOKS: tuple[tuple[str, tuple[str, ...], tuple[Sign, ...]], ...] = (
    ("check_network_status", ("service", "mobile_data", "mms"), (
        Sign("locked", ()),
        Sign("Airplane Mode: ON", ("toggle_airplane_mode",)),
        Sign("SIM Card Status: missing", ("reseat_sim_card", "check_sim_status")),
        Sign("Mobile Data Enabled: No", ("toggle_data",)),
        Sign("Data Roaming Enabled: No", ("toggle_roaming",), abroad=True),
    )),
    ("check_apn_settings", ("service", "mobile_data", "mms"), (
        Sign("APN Name: broken", ("reset_apn_settings", "reboot_device")),
        Sign("Not Set", ("reset_apn_settings", "reboot_device")),
    )),
    ("check_network_mode_preference", ("mobile_data", "mms"), (
        Sign("4g_5g_preferred", ("set_network_mode_preference",), missing=True),
    )),
    ("check_data_restriction_status", ("mobile_data",), (
        Sign("is ON", ("toggle_data_saver_mode",)),
    )),
    ("check_vpn_status", ("mobile_data",), (Sign("POOR", ("disconnect_vpn",)),)),
    ("check_wifi_calling_status", ("mms",), (Sign("turned ON", ("toggle_wifi_calling",)),)),
    ("check_app_permissions", ("mms",), (
        Sign("storage", ("grant_app_permission",), missing=True, permission="storage"),
        Sign("sms", ("grant_app_permission",), missing=True, permission="sms"),
    )),
)  # fmt: skip


def serve(dialogue: Dialogue, errors: ClerkConfig, seed: str) -> Turns:
    """The clerk's turns, told each answer; they go on until the dialogue ends.

    errors: of its rates those that a telephone clerk can make: `redundant_read`, `transfer`, and
      `false_done`, a fault that it leaves as it is.
    """
    return _Clerk(dialogue.task, errors, random.Random(f"clerk-{seed}")).serve(dialogue.opening)


class _Clerk:
    def __init__(self, task: Task, errors: ClerkConfig, rng: random.Random):
        # Both are in what the user says first.
        self.complaint = complaint_of(task)
        self.abroad = TelecomUser(task, 0).abroad
        self.errors = errors
        self.rng = rng

    def serve(self, opening: str) -> Turns:
        if self._errs("transfer"):
            yield from self._hand_over()
        phone = _PHONE.search(opening)
        while phone is None:
            phone = _PHONE.search((yield self.rng.choice(ASK_WHO)).text)
        found = yield Call("get_customer_by_phone", {"phone_number": phone[0]})
        customer = json.loads(found.text)
        for look, complaints, signs in LOOKS:
            if self.complaint not in complaints:
                continue
            if look == "check_apn_settings":  # first what the network shows, then the line
                yield from self._mend_line(customer, phone[0])
            yield from self._mend_phone(look, signs)
        while True:
            yield self.rng.choice(TRY_AGAIN)

    def _mend_phone(self, look: str, signs: tuple[Sign, ...]) -> Turns:
        answer = (yield ASKS[look].sentence.format(**_MESSAGING)).text
        if self._errs("redundant_read"):
            answer = (yield ASKS[look].sentence.format(**_MESSAGING)).text
        for sign in signs:
            if not sign.found(answer) or (sign.abroad and not self.abroad):
                continue
            if not sign.mends:
                yield from self._hand_over()
            if self._errs("false_done"):
                yield self.rng.choice(TRY_AGAIN)
                continue
            for tool in sign.mends:
                asked = ASKS[tool].sentence.format(permission=sign.permission, **_MESSAGING)
                if "locked" in (yield asked).text:
                    yield from self._hand_over()

    def _mend_line(self, customer: Record, number: str) -> Turns:
        line: Record = {}
        for line_id in customer["line_ids"]:
            line = json.loads((yield Call("get_details_by_id", {"id": line_id})).text)
            if line["phone_number"] == number:
                break
        owned = {"customer_id": customer["customer_id"], "line_id": line["line_id"]}
        if line["status"] == "Suspended":
            if (line["contract_end_date"] or TODAY) < TODAY:
                yield from self._hand_over()
            bills = json.loads((yield Call(
                "get_bills_for_customer", {"customer_id": customer["customer_id"]}
            )).text)
            for bill in bills:
                if bill["status"] == "Overdue":
                    asked = {"customer_id": customer["customer_id"], "bill_id": bill["bill_id"]}
                    yield Call("send_payment_request", asked)
                    yield ASK_PAY.format(bill=bill["bill_id"])
            yield Call("resume_line", owned)
            yield ASKS["reboot_device"].sentence
        if self.abroad and not line["roaming_enabled"]:
            yield Call("enable_roaming", owned)
        if self.complaint == "service":
            return
        usage = json.loads((yield Call("get_data_usage", owned)).text)
        limit = float(usage["data_limit_gb"]) + float(usage["data_refueling_gb"])
        if float(usage["data_used_gb"]) >= limit:
            plan = json.loads((yield Call("get_details_by_id", {"id": line["plan_id"]})).text)
            price = REFUEL_GB * plan["data_refueling_price_per_gb"]
            yield ASK_REFUEL.format(gb=REFUEL_GB, price=price)
            yield Call("refuel_data", owned | {"gb_amount": REFUEL_GB})

    def _hand_over(self) -> Turns:
        yield Call(TRANSFER, {"summary": "I cannot fix the issue."})
        while True:
            yield TRANSFERRED

    def _errs(self, name: str) -> bool:
        return self.rng.random() < getattr(self.errors, name)
