"""What the user of τ²-bench's telecom domain does with the phone, and how a task breaks it.

Answers to a tool that writes end in the status bar. A quirk is a fault of the benchmark that is
kept.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from tarl_jax.sandbox.domain import Record, State, Tool, make_tool
from tarl_jax.sandbox.telecom_phone import (
    LOOKS,
    NO_WIFI,
    PREFERENCES,
    attribute,
    check_app_permissions,
    check_app_status,
    mode_of,
    note,
    on_off,
    phone_of,
    record_of,
    search,
    status_bar,
)
from tarl_jax.sandbox.telecom_records import APN, PERMISSIONS, USER

Mode = Literal["4g_5g_preferred", "4g_only", "3g_only", "2g_only"]


@dataclass(frozen=True)
class Switch:
    """A setting that a tool turns on and off.

    field: of the phone; label: how answers name it; searches: whether the phone then looks for a
    network; purpose: what the tool is for.
    """

    field: str
    label: str
    searches: bool
    purpose: str

    def flip(self, db: State) -> str:
        phone = db.edit(USER, "device")
        phone[self.field] = on = not phone[self.field]
        if self.searches:
            search(db)
        return f"{self.label} is now {on_off(on)}."


SWITCHES = {  # what follows "toggle_" -> the switch
    "data": Switch(
        "data_enabled", "Mobile Data", True,
        "Turn mobile data on, or off if it is on. It is the internet away from Wi-Fi.",
    ),
    "roaming": Switch(
        "roaming_enabled", "Data Roaming", True,
        "Turn data roaming on, or off if it is on. Abroad there is no mobile data without it.",
    ),
    "data_saver_mode": Switch(
        "data_saver_mode", "Data Saver Mode", False,
        "Turn Data Saver on, or off if it is on. It uses less data, and is slower.",
    ),
    "wifi_calling": Switch(
        "wifi_calling_enabled", "Wi-Fi Calling", False,
        "Turn Wi-Fi Calling on, or off if it is on. It makes calls over Wi-Fi.",
    ),
}  # fmt: skip


class Phone:
    """The tools of one domain's phones, and what a task may do to them at its start.

    Quirk: all VPN connections share one record in the benchmark. Once any task has broken its VPN,
    every connection that is made from then on is poor, in whichever episode of this domain.
    """

    def __init__(self) -> None:
        self._vpn: Record = {"server_address": "192.168.1.1", "protocol": "OpenVPN",
                             "server_performance": "excellent"}
        acts: dict[str, tuple[str, Callable[[State], str]]] = {
            **{f"toggle_{name}": (s.purpose, s.flip) for name, s in SWITCHES.items()},
            "toggle_airplane_mode": (
                "Turn airplane mode on, or off if it is on. All radio is off while it is on.",
                flip_airplane_mode,
            ),
            "toggle_wifi": ("Turn Wi-Fi on, or off if it is on.", _flip_wifi),
            "reseat_sim_card": ("Take your SIM card out and put it back in.", _reseat_sim),
            "reset_apn_settings": (
                "Set the access point (APN) back as it came. It takes effect at the next reboot.",
                _reset_apn,
            ),
            "connect_vpn": ("Connect to your VPN.", self._connect_vpn),
            "disconnect_vpn": ("Disconnect from your VPN.", _disconnect_vpn),
            "reboot_device": ("Switch your phone off and on again.", _reboot),
            "make_payment": ("Pay the bill that the agent has asked you to pay.", _pay),
        }  # fmt: skip
        silent = ("make_payment",)  # of these the status bar is not shown
        listed = [
            *(_plain(name, what, look, write=False) for name, (what, look) in LOOKS.items()),
            *(_plain(name, what, act if name in silent else _with_bar(act), write=True)
              for name, (what, act) in acts.items()),
            make_tool(check_app_status, write=False),
            make_tool(check_app_permissions, write=False),
            *(make_tool(function, write=True) for function in
              (set_network_mode_preference, set_apn_settings, grant_app_permission)),
        ]
        self.tools: dict[str, Tool] = {tool.name: tool for tool in listed}
        airplane = flip_airplane_mode, "airplane_mode"
        switches = {name: (s.flip, s.field) for name, s in SWITCHES.items() if "wifi" not in name}
        self.functions: dict[str, Callable[..., Any]] = {
            **{f"turn_{name}_{on_off(on).lower()}": _turned(*switch, on)
               for name, switch in (switches | {"airplane_mode": airplane}).items()
               for on in (True, False)},
            "turn_data_on": lambda db: note(db, "device", {"data_enabled": True}),
            "set_user_info": lambda db, name, phone_number: note(
                db, "surroundings", {"name": name, "phone_number": phone_number}
            ),
            "set_user_location": lambda db, abroad: note(db, "surroundings", {"is_abroad": abroad}),
            "set_wifi_calling": _set_wifi_calling,
            "unseat_sim_card": lambda db: _set_and_search(db, sim_card_missing=True),
            "lock_sim_card": _lock_sim,
            "break_apn_settings": _break_apn,
            "break_apn_mms_setting": _break_mms,
            "break_vpn": self._break_vpn,
            "remove_app_permission": lambda db, app_name, permission: (
                _set_permission(db, app_name, permission, False)
            ),
            "simulate_network_search": search,
        }

    def _connect_vpn(self, db: State) -> str:
        if phone_of(db)["vpn_connected"]:
            return "VPN already connected."
        note(db, "device", {"vpn_connected": True, "vpn_details": dict(self._vpn)})
        return "VPN connected successfully."

    def _break_vpn(self, db: State) -> None:
        self._connect_vpn(db)
        details = db.edit(USER, "device")["vpn_details"]
        if details == self._vpn:
            self._vpn = self._vpn | {"server_performance": "poor"}
        details["server_performance"] = "poor"


def _plain(name: str, purpose: str, function: Callable[[State], str], write: bool) -> Tool:
    """A tool without arguments."""
    schema = {"name": name, "description": purpose,
              "parameters": {"type": "object", "properties": {}, "required": []}}

    def call(db: State) -> str:
        return function(db)

    call.__name__ = call.__qualname__ = name  # as Python names it where an argument is given
    return Tool(name, call, write, {"type": "function", "function": schema})


def _with_bar(act: Callable[[State], str]) -> Callable[[State], str]:
    def call(db: State) -> str:
        said = act(db)
        # Quirk: the one answer without the bar.
        return said if said == "VPN already connected." else f"{said}\n{status_bar(db)}"

    return call


def _turned(flip: Callable[[State], Any], field: str, on: bool) -> Callable[[State], None]:
    """Flips a switch once or twice, until it stands as wanted."""

    def turn(db: State) -> None:
        flip(db)
        if phone_of(db)[field] != on:
            flip(db)

    return turn


def _set_and_search(db: State, **values: Any) -> None:
    note(db, "device", values)
    search(db)


# --- tools ----------------------------------------------------------------------------------------


def flip_airplane_mode(db: State) -> str:
    """The switch of airplane mode, which also cuts Wi-Fi and VPN."""
    phone = db.edit(USER, "device")
    phone["airplane_mode"] = on = not phone["airplane_mode"]
    if on or phone["wifi_enabled"]:
        phone |= NO_WIFI
    if on and phone["vpn_connected"]:
        phone |= {"vpn_connected": False, "vpn_details": None}
    search(db)
    return f"Airplane Mode is now {on_off(on)}."


def _flip_wifi(db: State) -> str:
    phone = phone_of(db)
    if phone["airplane_mode"]:
        return "Cannot change Wi-Fi settings while Airplane Mode is ON."
    on = not phone["wifi_enabled"]
    note(db, "device", {"wifi_enabled": on} | ({} if on else NO_WIFI))
    return f"Wi-Fi is now {on_off(on)}."


def set_network_mode_preference(db: State, mode: Mode) -> str:
    """Choose which kind of network your phone prefers; a newer one is faster.

    Args:
        mode: The preference.
    """
    known = not isinstance(mode, str) or mode in PREFERENCES
    if known:  # Quirk: what is no text is stored as it came.
        _set_and_search(db, network_mode_preference=mode)
    if not known or mode is None:
        said = (f"Failed to set network mode: '{mode}' is not a valid option."
                f" Please use one of: {', '.join(PREFERENCES)}")
    else:
        said = f"Preferred Network Mode set to: {mode_of(mode)}"
    return f"{said}\n{status_bar(db)}"


def set_apn_settings(db: State, apn_settings: dict) -> str:
    """Change the access point (APN).

    Args:
        apn_settings: Its fields: apn_name ('internet' or 'broken'), reset_at_reboot, mms_apn,
            mmsc_url, mms_proxy, mms_port. What is left out is as it came.
    """
    given = APN.read(apn_settings) if isinstance(apn_settings, dict) else apn_settings
    # Quirk: what is no object is stored as it came.
    note(db, "device", {"active_apn_settings": given})
    name = attribute(given, "apn_name")
    search(db)
    return f"APN settings set to: {name}\n{status_bar(db)}"


def _reset_apn(db: State) -> str:
    apn = db.edit(USER, "device")["active_apn_settings"]
    attribute(apn, "reset_at_reboot")
    apn["reset_at_reboot"] = True
    search(db)
    return "APN settings will reset at reboot."


def _reseat_sim(db: State) -> str:
    _set_and_search(db, sim_card_missing=False)
    return "SIM card re-seated successfully."


def _disconnect_vpn(db: State) -> str:
    if not phone_of(db)["vpn_connected"]:
        return "No active VPN connection to disconnect."
    note(db, "device", {"vpn_connected": False, "vpn_details": None})
    return "VPN disconnected successfully."


def grant_app_permission(db: State, app_name: str, permission: str) -> str:
    """Let an app use something.

    Args:
        app_name: The app, such as 'messaging'.
        permission: What it may use: 'sms', 'storage', 'phone' or 'network'.
    """
    return f"{_set_permission(db, app_name, permission, True)}\n{status_bar(db)}"


def _set_permission(db: State, app_name: Any, permission: Any, held: bool) -> str:
    app = phone_of(db)["app_statuses"].get(app_name)
    permission = permission.lower()
    if app is None:
        return f"Error. App '{app_name}' not found. Cannot grant permission."
    if permission not in PERMISSIONS:
        return (f"Error. Permission '{permission}' not tracked for app '{app_name}', available"
                f" permissions: {list(PERMISSIONS)}")
    db.edit(USER, "device")["app_statuses"][app_name]["permissions"][permission] = held
    return f"Success. Permission '{permission}' granted to app '{app_name}'."


def _reboot(db: State) -> str:
    lines = ["Restarting network services..."]
    if attribute(phone_of(db)["active_apn_settings"], "reset_at_reboot"):
        lines.insert(0, "Resetting APN settings...")
        note(db, "device", {"active_apn_settings": APN.read({})})
    search(db)
    return "\n".join(lines)


def _pay(db: State) -> str:
    if record_of(db, "surroundings")["payment_request"] is None:
        return "You do not have a payment request."
    request = db.edit(USER, "surroundings")["payment_request"]
    request["paid"] = True
    return f"Payment of {request['amount_due']} USD has been made for bill {request['bill_id']}."


# --- what makes a task's start --------------------------------------------------------------------


def _set_wifi_calling(db: State, enabled: bool, mms_over_wifi: bool | None = None) -> None:
    note(db, "device", {"wifi_calling_enabled": enabled})
    if mms_over_wifi is not None:
        note(db, "device", {"wifi_calling_mms_over_wifi": mms_over_wifi})


def _lock_sim(db: State, mode: str) -> None:
    _set_and_search(db, **({"sim_card_status": f"locked_{mode}"} if mode in ("pin", "puk") else {}))


def _break_apn(db: State) -> None:
    db.edit(USER, "device")["active_apn_settings"]["apn_name"] = "broken"
    search(db)


def _break_mms(db: State) -> None:
    db.edit(USER, "device")["active_apn_settings"]["mmsc_url"] = None
