"""What τ²-bench's telecom domain holds: the carrier's tables, and the user's phone.

The tables come from `db.toml`, lists of records in an order that counts; here each record stands
under its id. The phone and its surroundings come from `user_db.toml`; they are the two records of
the table "user".
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tarl_jax.config import InputError
from tarl_jax.config.plain import read_text
from tarl_jax.sandbox.domain import Database, ToolError
from tarl_jax.sandbox.typed_records import (
    Kind,
    Model,
    absent,
    boolean,
    choice,
    day,
    dict_of,
    integer,
    list_of,
    number,
    optional,
    text,
    time,
)

USER = "user"  # the table of the user's own records
TECHNOLOGIES = ("2G", "3G", "4G", "5G")
PERMISSIONS = ("sms", "storage", "phone", "network")


def _model(name: str, /, **fields: Kind) -> Model:
    return Model(name, fields, extra=False)


def _one_of(*names: str) -> Kind:
    return choice(*names, kind="enum")


_Ids = absent([], list_of(text))
_zero = absent(0.0, number)
_off = absent(False, boolean)
_on = absent(True, boolean)

# --- the carrier's --------------------------------------------------------------------------------

LINE_ITEM = _model("LineItem", description=text, amount=number, date=day, item_type=text)
BILL = _model(
    "Bill", bill_id=text, customer_id=text, period_start=day, period_end=day, issue_date=day,
    total_due=number, due_date=day, line_items=absent([], list_of(LINE_ITEM)),
    status=absent("Draft", _one_of(
        "Draft", "Issued", "Awaiting Payment", "Paid", "Overdue", "Disputed"
    )),
)  # fmt: skip
TABLES = {
    "plans": _model(
        "Plan", plan_id=text, name=text, data_limit_gb=number, price_per_month=number,
        data_refueling_price_per_gb=number,
    ),
    "customers": _model(
        "Customer", customer_id=text, full_name=text, date_of_birth=text, email=text,
        phone_number=text,
        address=_model("Address", street=text, city=text, state=text, zip_code=text),
        account_status=absent("Pending Verification", _one_of(
            "Active", "Suspended", "Pending Verification", "Closed"
        )),
        payment_methods=absent([], list_of(_model(
            "PaymentMethod", method_type=_one_of("Credit Card", "Debit Card", "PayPal"),
            account_number_last_4=text, expiration_date=text,
        ))),
        line_ids=_Ids, bill_ids=_Ids, created_at=absent("2025-01-01", time),
        last_extension_date=optional(day), goodwill_credit_used_this_year=_zero,
    ),
    "lines": _model(
        "Line", line_id=text, phone_number=text,
        status=absent("Pending Activation", _one_of(
            "Active", "Suspended", "Pending Activation", "Closed"
        )),
        plan_id=text, device_id=optional(text), data_used_gb=_zero, data_refueling_gb=_zero,
        roaming_enabled=_off, contract_end_date=optional(day), last_plan_change_date=optional(day),
        last_sim_replacement_date=optional(day), suspension_start_date=optional(day),
    ),
    "bills": BILL,
    "devices": _model(
        "Device", device_id=text,
        device_type=_one_of("phone", "router", "tablet", "watch", "other"), model=text,
        imei=optional(text), is_esim_capable=boolean, activated=_off,
        activation_date=optional(time), last_esim_transfer_date=optional(time),
    ),
}  # fmt: skip

# --- the user's -----------------------------------------------------------------------------------

_SIGNALS = ("none", "poor", "fair", "good", "excellent")
_signal = _one_of(*_SIGNALS)
_levels = _one_of("unknown", "poor", "fair", "good", "excellent")
APN = _model(
    "APNSettings", apn_name=absent("internet", _one_of("internet", "broken")),
    reset_at_reboot=_off, mms_apn=optional(text, "mms"),
    mmsc_url=optional(text, "http://mms.carrier.com/mms/wapenc"), mms_proxy=optional(text),
    mms_port=optional(integer),
)  # fmt: skip
_APP = _model(
    "AppStatus", app_name=text,
    permissions=absent(dict.fromkeys(PERMISSIONS, False),
                       _model("AppPermissions", **dict.fromkeys(PERMISSIONS, _off))),
)  # fmt: skip
_APPS = {
    "messaging": {"sms": True, "storage": True, "phone": True, "network": False},
    "browser": {"sms": False, "storage": True, "phone": False, "network": True},
}
PHONE = _model(
    "MockPhoneAttributes",
    sim_card_status=absent("active", _one_of("active", "missing", "locked_pin", "locked_puk")),
    sim_card_missing=_off, airplane_mode=_off, network_signal_strength=absent("good", _signal),
    network_technology_connected=absent("5G", _one_of("none", *TECHNOLOGIES)),
    network_connection_status=absent("connected", _one_of(
        "connected", "searching", "no_service", "emergency_only"
    )),
    battery_level=absent(80, integer), data_enabled=_on, roaming_enabled=_off,
    network_mode_preference=absent("4g_5g_preferred", _one_of(
        "4g_5g_preferred", "4g_only", "3g_only", "2g_only"
    )),
    active_apn_settings=absent(APN.read({}), APN),
    wifi_enabled=_off, wifi_connected=_off, wifi_ssid=optional(text),
    wifi_signal_strength=absent("none", _signal), wifi_calling_enabled=_off,
    wifi_calling_mms_over_wifi=_off, data_saver_mode=_off, vpn_enabled_setting=_off,
    vpn_connected=_off,
    vpn_details=optional(_model(
        "VpnDetails", server_address=optional(text), protocol=optional(text),
        server_performance=absent("unknown", _levels),
    )),
    app_statuses=absent(
        {name: {"app_name": name, "permissions": held} for name, held in _APPS.items()},
        dict_of(_APP),
    ),
)  # fmt: skip
SURROUNDINGS = _model(
    "UserSurroundings", name=optional(text), phone_number=optional(text), is_abroad=_off,
    roaming_allowed=_off,
    signal_strength=absent(dict(zip(TECHNOLOGIES, _SIGNALS[1:], strict=True)), dict_of(_signal)),
    mobile_data_usage_exceeded=_off, line_active=_on,
    payment_request=optional(_model(
        "PaymentRequest", bill_id=text, amount_due=number, paid=_off,
    )),
)  # fmt: skip
USER_RECORDS = {"device": PHONE, "surroundings": SURROUNDINGS}

# --- a folder -------------------------------------------------------------------------------------


def read_folder(folder: Path, manual: str) -> tuple[Database, str]:
    """The database and the policy of τ²'s folder.

    manual: the file of what the agent should know of phones.
    Raises InputError for records that are not such, and for a file that is not there.
    """
    for name in ("db.toml", "user_db.toml", "main_policy.md", manual):
        if not (folder / name).is_file():
            raise InputError(f"{folder}: has no {name}")
    database = typed(_toml(folder / "db.toml"), _toml(folder / "user_db.toml"), str(folder))
    parts = {"main_policy": "main_policy.md", "tech_support_policy": manual}
    texts = (f"<{tag}>\n{read_text(folder / name)}\n</{tag}>" for tag, name in parts.items())
    return database, "\n".join(texts)


def typed(carrier: Mapping[str, Any], user: Mapping[str, Any], where: str) -> Database:
    """The database of a carrier's lists of records and a user's records, every field in its type.

    Raises InputError for records that are not such, or two of one id; `where` names them there.
    """
    unknown = sorted((carrier.keys() - TABLES) | (user.keys() - USER_RECORDS))
    if unknown:
        raise InputError(f"{where}: the telecom domain has no table {unknown[0]!r}")
    database: Database = {}
    for table, model in TABLES.items():
        key, records = f"{table.removesuffix('s')}_id", database.setdefault(table, {})
        for raw in carrier.get(table, []):
            try:
                record = model.read(raw)
            except (ToolError, TypeError) as error:
                raise InputError(f"{where}: table {table!r} is not τ²-bench's: {error}") from None
            if record[key] in records:
                raise InputError(f"{where}: two {table} have the id {record[key]!r}")
            records[record[key]] = record
    try:
        database[USER] = {name: m.read(user.get(name, {})) for name, m in USER_RECORDS.items()}
    except (ToolError, TypeError) as error:
        raise InputError(f"{where}: the user's records are not τ²-bench's: {error}") from None
    return database


def _toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(read_text(path))
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{path}: {error}") from None
