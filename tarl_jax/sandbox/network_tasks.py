"""Tasks of the embedded carrier: a phone or a line that is broken in one way or several.

A task is written as τ²-bench writes telecom's: `initial_state` breaks things, `checks` say what
must hold when they are mended, `actions` are one way there. It has no `reward_basis`: it is none of
the benchmark's, and its episodes end by tau-bench's rules.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tarl_jax.config import ShopConfig, TaskConfig
from tarl_jax.sandbox.domain import Domain, Record
from tarl_jax.sandbox.shop import held_out_users
from tarl_jax.sandbox.telecom_user import COMPLAINTS
from tarl_jax.types import Call, Check, GoldAction, Task

SOURCE = "network"
_REFUEL = 2.0
_ABROAD = 0.3  # how often a user with a data problem is abroad, roaming broken or not
_ALL = ("service", "mobile_data", "mms")
_DATA = ("mobile_data", "mms")

Step = tuple[str, str, Mapping[str, Any]]  # whose, what, how; "{…}" are filled in


@dataclass(frozen=True)
class Fault:
    """Something that is broken.

    complaints: those that it gives cause to; breaks: what makes it so; mends: what undoes it;
    checks: what holds then; abroad: whether it is one abroad alone.
    """

    complaints: tuple[str, ...]
    breaks: tuple[Step, ...]
    mends: tuple[Step, ...]
    checks: tuple[Step, ...] = ()
    abroad: bool = False


def _user(name: str, /, **kwargs: Any) -> Step:
    return "user", name, kwargs


def _agent(name: str, /, **kwargs: Any) -> Step:
    return "assistant", name, kwargs


_OWNED = {"customer_id": "{customer}", "line_id": "{line}"}
_RESET = (_user("reset_apn_settings"), _user("reboot_device"))
_MODE = "set_network_mode_preference"


def _permission(name: str) -> Fault:
    given = {"app_name": "messaging", "permission": name}
    return Fault(("mms",), (_user("remove_app_permission", **given),),
                 (_user("grant_app_permission", **given),))


def _old_network(mode: str, *complaints: str) -> Fault:
    return Fault(complaints, (_user(_MODE, mode=mode),), (_user(_MODE, mode="4g_5g_preferred"),))


FAULTS = {
    "airplane_mode": Fault(
        _ALL, (_user("turn_airplane_mode_on"),), (_user("toggle_airplane_mode"),),
        (_user("assert_airplane_mode_status", expected_status=False),),
    ),
    "sim_out": Fault(_ALL, (_user("unseat_sim_card"),), (_user("reseat_sim_card"),)),
    "apn": Fault(_ALL, (_user("break_apn_settings"),), _RESET),
    "unpaid_bill": Fault(
        ("service",),
        (_agent("suspend_line_for_overdue_bill", **_OWNED, new_bill_id="{bill}",
                contract_ended=False),
         _user("simulate_network_search")),
        (_agent("send_payment_request", customer_id="{customer}", bill_id="{bill}"),
         _user("make_payment"), _agent("resume_line", **_OWNED), _user("reboot_device")),
        (_agent("assert_no_overdue_bill", overdue_bill_id="{bill}"),
         _agent("assert_line_status", **_OWNED, expected_status="Active")),
    ),
    "data_off": Fault(_DATA, (_user("turn_data_off"),), (_user("toggle_data"),)),
    "phone_roaming": Fault(
        _DATA, (_user("turn_roaming_off"),), (_user("toggle_roaming"),),
        (_user("assert_mobile_roaming_status", expected_status=True),), abroad=True,
    ),
    "line_roaming": Fault(
        _DATA, (_agent("disable_roaming", **_OWNED),), (_agent("enable_roaming", **_OWNED),),
        abroad=True,
    ),
    "data_used_up": Fault(
        _DATA, (_agent("set_data_usage", **_OWNED, data_used_gb="{used}"),),
        (_agent("refuel_data", **_OWNED, gb_amount=_REFUEL),),
        (_agent("assert_data_refueling_amount", **_OWNED, expected_amount=_REFUEL),),
    ),
    "data_saver": Fault(
        ("mobile_data",), (_user("turn_data_saver_mode_on"),), (_user("toggle_data_saver_mode"),),
        (_user("assert_mobile_data_saver_mode_status", expected_status=False),),
    ),
    "network_2g": _old_network("2g_only", *_DATA),
    "network_3g": _old_network("3g_only", "mobile_data"),
    "wifi_calling": Fault(
        ("mms",), (_user("set_wifi_calling", enabled=True, mms_over_wifi=True),),
        (_user("toggle_wifi_calling"),),
    ),
    "no_storage": _permission("storage"),
    "no_sms": _permission("sms"),
    "mms_address": Fault(("mms",), (_user("break_apn_mms_setting"),), _RESET),
}  # fmt: skip
_HANDED_OVER = (_agent("transfer_to_human_agents", summary="The clerk cannot mend it."),)
# What a clerk must not mend: it hands over.
HOPELESS = {
    "sim_locked_by_pin": Fault(("service",), (_user("lock_sim_card", mode="pin"),), _HANDED_OVER),
    "sim_locked_by_puk": Fault(("service",), (_user("lock_sim_card", mode="puk"),), _HANDED_OVER),
    "contract_ended": Fault(
        ("service",),
        (_agent("suspend_line_for_overdue_bill", **_OWNED, new_bill_id="{bill}",
                contract_ended=True),
         _user("simulate_network_search")),
        _HANDED_OVER,
    ),
}  # fmt: skip
# One of these at a time: they break the same thing.
_ALIKE = ({"apn", "mms_address"}, {"network_2g", "network_3g"})
_CONTENT: dict[str, tuple[Step, ...]] = {
    "service": (_user("assert_service_status", expected_status="connected"),),
    "mobile_data": (
        _user("assert_mobile_data_status", expected_status=True),
        _user("assert_internet_speed", expected_speed=200, expected_desc="excellent"),
    ),
    "mms": (_user("assert_can_send_mms", expected_status=True),),
}


def drafts(
    domain: Domain, shop: ShopConfig, config: TaskConfig, split: str
) -> Iterator[Task | None]:
    """Tasks of a split's customers without end, unrated; None for one that was drawn already."""
    customers = domain.database["customers"]
    held_out = held_out_users(domain.database, shop, "customers")
    own = [key for key in customers if (key in held_out) == (split == "held_out")]
    rng = random.Random(f"network-tasks-{config.seed}-{split}")
    seen: set[tuple[str, ...]] = set()
    while own:
        customer = customers[rng.choice(own)]
        line = domain.database["lines"][rng.choice(customer["line_ids"])]
        complaint, abroad, names = _draw(rng, config)
        key = (line["line_id"], complaint, *sorted(names))
        task_id = f"{SOURCE}-{split}-{len(seen)}"
        if key in seen:
            yield None
            continue
        seen.add(key)
        yield _task(domain, customer, line, complaint, abroad, names, task_id, split)


def _draw(rng: random.Random, config: TaskConfig) -> tuple[str, bool, list[str]]:
    """A complaint, whether its user is abroad, and the names of the faults."""
    if rng.random() < config.forbidden:
        return "service", False, [rng.choice(list(HOPELESS))]
    complaint = rng.choice(_ALL)
    abroad = complaint != "service" and rng.random() < _ABROAD
    known = [name for name, fault in FAULTS.items()
             if complaint in fault.complaints and (abroad or not fault.abroad)]
    count = rng.choices(range(1, len(config.requests) + 1), config.requests)[0]
    names: list[str] = []
    for name in rng.sample(known, len(known)):
        alike = set().union(*(group for group in _ALIKE if name in group))
        if len(names) < count and not alike & set(names):
            names.append(name)
    # As they are listed: what breaks the radio does so first.
    return complaint, abroad, [name for name in FAULTS if name in names]


def _task(
    domain: Domain, customer: Record, line: Record, complaint: str, abroad: bool,
    names: list[str], task_id: str, split: str,
) -> Task:  # fmt: skip
    plan = domain.database["plans"][line["plan_id"]]
    words = {"customer": customer["customer_id"], "line": line["line_id"],
             "bill": f"B9{customer['customer_id'][1:]}", "used": plan["data_limit_gb"] + 1.0}
    faults = [(FAULTS | HOPELESS)[name] for name in names]
    hopeless = names[0] in HOPELESS
    begin = [_user("set_user_info", name=customer["full_name"], phone_number=line["phone_number"])]
    if abroad:
        begin += [_user("set_user_location", abroad=True), _user("turn_roaming_on"),
                  _agent("enable_roaming", **_OWNED)]
    begin += [step for fault in faults for step in fault.breaks]
    status = _user("assert_service_status", expected_status="no_service")
    wanted = [status] if hopeless else [
        *_CONTENT[complaint], *(step for fault in faults for step in fault.checks)
    ]
    mends = [_filled(step, words) for fault in faults for step in fault.mends]
    return Task(
        task_id=task_id,
        user_id=customer["customer_id"],
        instruction=_instruction(customer, line, complaint, abroad),
        gold_calls=tuple(Call(name, kwargs) for side, name, kwargs in mends
                         if side == "assistant" and domain.tools[name].write),
        outputs=(),
        split=split,
        source=SOURCE,
        script=None,
        expert_turns=1,
        actions=tuple(
            GoldAction(name, kwargs, () if hopeless else None, side) for side, name, kwargs in mends
        ),
        initial_state={"initialization_actions": [
            {"env_type": side, "func_name": name, "arguments": kwargs}
            for side, name, kwargs in (_filled(step, words) for step in begin)
        ]},
        checks=tuple(Check(name, kwargs, side)
                     for side, name, kwargs in (_filled(step, words) for step in wanted)),
    )


def _filled(step: Step, words: Mapping[str, Any]) -> tuple[str, str, dict[str, Any]]:
    side, name, kwargs = step
    slots = {f"{{{slot}}}": value for slot, value in words.items()}
    return side, name, {
        k: slots.get(v, v) if isinstance(v, str) else v for k, v in kwargs.items()
    }


def _instruction(customer: Record, line: Record, complaint: str, abroad: bool) -> str:
    """The hidden task in words."""
    content = {
        "service": "your phone has service again",
        "mobile_data": "a speed test says that it is excellent",
        "mms": "your phone can send a picture message",
    }[complaint]
    return " ".join([
        f"You are {customer['full_name']}, and your phone number is {line['phone_number']}.",
        COMPLAINTS[complaint].said[0].strip(),
        *(["You are abroad."] if abroad else []),
        f"You are content once {content}, and not before; look for yourself.",
        f"If you have used up your data you pay for {_REFUEL} GB more. You pay a bill that you owe",
        "when you are asked to. You want no other plan.",
    ])
