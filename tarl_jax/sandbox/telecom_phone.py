"""The phone in the user's hand, of τ²-bench's telecom domain: how it works, and what it shows.

Written from what the benchmark's own tools answered to recorded calls. Phone and surroundings are
the two records of the table "user" (`telecom_records.py`); what changes them is in
`telecom_phone_tools.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tarl_jax.sandbox.domain import Record, State, ToolError, Unfinished
from tarl_jax.sandbox.telecom_records import USER

# Which networks a preference looks for; the last one is taken also without a signal.
PREFERENCES: dict[str, tuple[str, ...]] = {
    "4g_5g_preferred": ("5G", "4G"), "4g_only": ("4G",), "3g_only": ("3G",), "2g_only": ("2G",),
}  # fmt: skip
_NO_SERVICE = {
    "network_connection_status": "no_service", "network_technology_connected": "none",
    "network_signal_strength": "none",
}  # fmt: skip
NO_WIFI = {"wifi_connected": False, "wifi_ssid": None, "wifi_signal_strength": "none"}
_BARS = {
    "none": "📵 No Signal", "poor": "📶¹ Poor", "fair": "📶² Fair", "good": "📶³ Good",
    "excellent": "📶⁴ Excellent",
}  # fmt: skip
_SIMS = {
    "active": "Your SIM card is active and working.",
    "missing": "No SIM card detected in the phone.",
    "locked_pin": "The SIM card is locked with a PIN code.",
    "locked_puk": "The SIM card is locked with a PUK code.",
}
_MBPS = {"2G": (0.1, 0.4), "3G": (1.0, 5.0), "4G": (10.0, 100.0), "5G": (50.0, 500.0)}
_SHARES = {"poor": 0.2, "fair": 0.5, "good": 0.8, "excellent": 1.0}
_SPEEDS = (  # below so many Mbps, its name, what it is good for
    (1, "Very Poor", "Connection is very slow. Basic web browsing might be difficult."),
    (5, "Poor", "Connection is slow. Web browsing may be sluggish, streaming difficult."),
    (25, "Fair", "Connection is okay for web browsing and some standard definition streaming."),
    (100, "Good", "Connection is good for most activities, including HD streaming."),
    (float("inf"), "Excellent", "Connection is very fast."),
)


def note(db: State, name: str, values: Mapping[str, Any]) -> None:
    """Writes what differs into one of the user's records; copies nothing where nothing does."""
    record = record_of(db, name)
    if changed := {key: value for key, value in values.items() if record[key] != value}:
        db.edit(USER, name).update(changed)


def record_of(db: State, name: str) -> Record:
    """One of the user's records, read only."""
    record = db.get(USER, name)
    assert record is not None
    return record


def phone_of(db: State) -> Record:
    """The phone, read only."""
    return record_of(db, "device")


def attribute(value: Any, name: str) -> Any:
    """A field of a record; of what was stored in its place, the error that Python has for it."""
    if not isinstance(value, dict):
        raise _missing(value, name)
    return value[name]


def mode_of(mode: Any) -> str:
    """A network preference as text. Raises for what was stored in its place."""
    if not isinstance(mode, str):
        raise _missing(mode, "value")
    return mode


def _missing(value: Any, name: str) -> Unfinished:
    return Unfinished(f"'{type(value).__name__}' object has no attribute '{name}'")


# --- what follows from the settings ---------------------------------------------------------------


def sim_of(phone: Record) -> str:
    """What state the SIM card is in."""
    return "missing" if phone["sim_card_missing"] else phone["sim_card_status"]


def search(db: State) -> None:
    """The phone looks for a network."""
    phone, around = db.edit(USER, "device"), record_of(db, "surroundings")
    mode = phone["network_mode_preference"]
    wanted = PREFERENCES.get(mode, ("4G",)) if isinstance(mode, str) else ("4G",)
    signals = {name: around["signal_strength"].get(name, "none") for name in wanted}
    found = next((name for name in wanted if signals[name] != "none"), wanted[-1])
    phone |= {
        "network_connection_status": "connected", "network_technology_connected": found,
        "network_signal_strength": signals[found],
    }
    if sim_of(phone) != "active" or phone["airplane_mode"]:
        phone |= _NO_SERVICE
    broken = attribute(phone["active_apn_settings"], "apn_name") == "broken"
    if broken or not around["line_active"]:
        phone |= _NO_SERVICE


def data_works(db: State) -> bool:
    """Whether mobile data works, at any speed."""
    phone, around = phone_of(db), record_of(db, "surroundings")
    return not (
        phone["airplane_mode"]
        or phone["network_signal_strength"] == "none"
        or phone["network_connection_status"] == "no_service"
        or (around["is_abroad"] and not (phone["roaming_enabled"] and around["roaming_allowed"]))
        or not phone["data_enabled"]
        or around["mobile_data_usage_exceeded"]
    )


def speed(db: State) -> tuple[float | None, str, str]:
    """(Mbps, its name, what it is good for); None without a connection."""
    if not data_works(db):
        return None, "No Connection", ""
    phone = phone_of(db)
    vpn = phone["vpn_connected"] and phone["vpn_details"]
    factor = 0.1 if vpn and vpn["server_performance"] == "poor" else 1.0
    if phone["data_saver_mode"]:
        factor *= 0.2
    low, high = _MBPS.get(phone["network_technology_connected"], (0.0, 0.0))
    share = _SHARES.get(phone["network_signal_strength"], 0.0)
    mbps = round((low + high) / 2.0 * share * factor, 2)
    return mbps, *next((name, advice) for bound, name, advice in _SPEEDS if mbps < bound)


def mms_works(db: State) -> bool:
    """Whether the messaging app can send pictures."""
    phone = phone_of(db)
    if not data_works(db) or phone["network_technology_connected"] == "2G":
        return False
    if phone["wifi_calling_enabled"] and phone["wifi_calling_mms_over_wifi"]:
        return False
    if attribute(phone["active_apn_settings"], "mmsc_url") is None:
        return False
    app = phone["app_statuses"].get("messaging")
    return app is not None and app["permissions"]["storage"] and app["permissions"]["sms"]


def status_bar(db: State) -> str:
    """The line of icons at the top of the screen."""
    phone = phone_of(db)
    network = phone["network_technology_connected"]
    if phone["airplane_mode"]:
        icons = ["✈️ Airplane Mode"]
    else:
        icons = [_BARS.get(phone["network_signal_strength"], _BARS["none"])]
        if network != "none":
            icons.append(network)
        if phone["data_enabled"] and network != "none":
            icons.append("📱 Data Enabled")
            if phone["data_saver_mode"]:
                icons.append("🔽 Data Saver")
        else:
            icons.append("📵 Data Disabled")
    if phone["wifi_enabled"] and phone["wifi_connected"]:
        name = phone["wifi_ssid"]
        icons.append(f"📡 Connected to {name}" if name else "📡 Enabled")
    if phone["vpn_connected"]:
        icons.append("🔒 VPN Connected")
    return "Status Bar: " + " | ".join([*icons, f"🔋 {phone['battery_level']}%"])


# --- reading --------------------------------------------------------------------------------------


def on_off(value: Any) -> str:
    """How a switch is shown."""
    return "ON" if value else "OFF"


def _yes(value: Any) -> str:
    return "Yes" if value else "No"


def _network(db: State) -> str:
    phone = phone_of(db)
    lines = [
        f"Airplane Mode: {on_off(phone['airplane_mode'])}",
        f"SIM Card Status: {sim_of(phone)}",
        f"Cellular Connection: {phone['network_connection_status']}",
        f"Cellular Signal: {phone['network_signal_strength']}",
        f"Cellular Network Type: {phone['network_technology_connected']}",
        f"Mobile Data Enabled: {_yes(phone['data_enabled'])}",
        f"Data Roaming Enabled: {_yes(phone['roaming_enabled'])}",
        f"Wi-Fi Radio: {on_off(phone['wifi_enabled'])}",
        f"Wi-Fi Connected: {_yes(phone['wifi_connected'])}",
    ]
    if phone["wifi_connected"]:
        lines.append(f"Connected Wi-Fi Network: {phone['wifi_ssid']}")
    return "\n".join(lines)


def _mode(db: State) -> str:
    mode = phone_of(db)["network_mode_preference"]
    return f"Network Mode Preference: {mode_of(mode)}"


def _speed_test(db: State) -> str:
    mbps, name, advice = speed(db)
    if mbps is None:
        return f"Speed test failed: {name}."
    return f"Speed Test Result: {mbps:.2f} Mbps ({name}). {advice}"


def _saver(db: State) -> str:
    on = phone_of(db)["data_saver_mode"]
    return f"Data Saver mode is {'ON (limits data usage)' if on else 'OFF'}."


def _apn(db: State) -> str:
    apn = phone_of(db)["active_apn_settings"]
    if not isinstance(apn, dict):
        raise _missing(apn, "model_copy")
    return (f"Current APN Name: {apn['apn_name']}\n"
            f"MMSC URL (for picture messages): {apn['mmsc_url'] or 'Not Set'}\n"
            "(These are technical settings, usually best left unchanged.)")


def _wifi(db: State) -> str:
    phone = phone_of(db)
    if not phone["wifi_enabled"]:
        return "Wi-Fi is turned OFF."
    if not phone["wifi_connected"]:
        return "Wi-Fi is ON but not connected to any network."
    return (f"Wi-Fi is ON and connected to '{phone['wifi_ssid']}'."
            f" Signal strength: {phone['wifi_signal_strength']}.")


def _wifi_calling(db: State) -> str:
    return f"Wi-Fi Calling is currently turned {on_off(phone_of(db)['wifi_calling_enabled'])}."


def _vpn(db: State) -> str:
    phone = phone_of(db)
    if not phone["vpn_connected"]:
        in_settings = "VPN is turned ON in settings, but currently not connected."
        return in_settings if phone["vpn_enabled_setting"] else "VPN is turned OFF."
    details = phone["vpn_details"]
    if not details:
        return "VPN is ON and connected (no specific details available)."
    level = details["server_performance"]
    return (f"VPN is ON and connected. Details: {{'server_address': {details['server_address']!r},"
            f" 'protocol': {details['protocol']!r}, 'server_performance':"
            f" <PerformanceLevel.{level.upper()}: {level!r}>}}")


def _apps(db: State) -> str:
    names = ", ".join(phone_of(db)["app_statuses"])
    return f"The following apps are installed on the phone: {names}"


def check_app_status(db: State, app_name: str) -> str:
    """Look at an app on your phone: what it may use.

    Args:
        app_name: The app, such as 'messaging'.
    """
    granted = _granted(db, app_name)
    if granted is None:
        return f"App '{app_name}' not found on this phone."
    listed = [" - Permissions Granted:", *(f"   - {name}" for name in granted)]
    return "\n".join([f"Status for App: {app_name}",
                      *(listed if granted else [" - Permissions: None granted."])])


def check_app_permissions(db: State, app_name: str) -> str:
    """Look at what an app may use: messages, storage, phone calls, the network.

    Args:
        app_name: The app, such as 'messaging'.
    """
    granted = _granted(db, app_name)
    if granted is None:
        return f"App '{app_name}' not found on this phone."
    if not granted:
        return f"App '{app_name}' currently has no permissions granted."
    return f"App '{app_name}' has permission for: {', '.join(granted)}."


def _granted(db: State, app_name: Any) -> list[str] | None:
    app = phone_of(db)["app_statuses"].get(app_name)
    return app and [name for name, held in app["permissions"].items() if held]


def _mms(db: State) -> str:
    return f"Your messaging app {'can' if mms_works(db) else 'cannot'} send MMS messages."


def _request(db: State) -> str:
    request = record_of(db, "surroundings")["payment_request"]
    if request is None:
        return "No payment request has been made."
    return (f"You have a payment request for bill {request['bill_id']}"
            f" of {request['amount_due']} USD.")


# What a phone shows, by tool: what it is for, and the text.
LOOKS: dict[str, tuple[str, Callable[[State], str]]] = {
    "check_status_bar": (
        "Look at the icons at the top of your phone's screen: signal, mobile data, Wi-Fi, battery.",
        status_bar,
    ),
    "check_network_status": (
        "Look at your phone's connections: airplane mode, SIM card, signal, network type, mobile"
        " data, data roaming, Wi-Fi.",
        _network,
    ),
    "check_network_mode_preference": (
        "Look at which kind of network your phone prefers.", _mode,
    ),
    "run_speed_test": (
        "Measure how fast your phone's internet connection is.", _speed_test,
    ),
    "check_sim_status": (
        "Look at your SIM card: working, missing, or locked by PIN or PUK.",
        lambda db: _SIMS[sim_of(phone_of(db))],
    ),
    "check_data_restriction_status": ("Look at whether Data Saver limits your data.", _saver),
    "check_apn_settings": (
        "Look at the access point (APN) through which your phone reaches the carrier's network, and"
        " at the address for picture messages.",
        _apn,
    ),
    "check_wifi_status": ("Look at whether Wi-Fi is on, and connected to what.", _wifi),
    "check_wifi_calling_status": ("Look at whether Wi-Fi Calling is on.", _wifi_calling),
    "check_vpn_status": ("Look at whether a VPN is connected, and how well it works.", _vpn),
    "check_installed_apps": ("List the apps on your phone.", _apps),
    "can_send_mms": ("Try whether your messaging app can send pictures (MMS).", _mms),
    "check_payment_request": ("Look at whether the agent has asked you to pay a bill.", _request),
}


# --- what a task may assert -----------------------------------------------------------------------


def _setting(name: str) -> Callable[..., bool]:
    return lambda db, expected_status: phone_of(db)[name] == expected_status


def _service(db: State, expected_status: str) -> bool:
    if expected_status not in ("connected", "searching", "no_service", "emergency_only"):
        raise ToolError(f"{expected_status!r} is not a valid NetworkStatus")
    return phone_of(db)["network_connection_status"] == expected_status


def _fast(db: State, expected_speed: float, expected_desc: str | None = None) -> bool:
    mbps, name, _ = speed(db)
    named = expected_desc is None or name.lower() == expected_desc.lower()
    return (mbps or 0.0) >= expected_speed and named


CHECKS: dict[str, Callable[..., Any]] = {
    "assert_airplane_mode_status": _setting("airplane_mode"),
    "assert_service_status": _service,
    "assert_mobile_data_status": lambda db, expected_status: data_works(db) == expected_status,
    "assert_mobile_roaming_status": _setting("roaming_enabled"),
    "assert_mobile_data_saver_mode_status": _setting("data_saver_mode"),
    "assert_internet_speed": _fast,
    "assert_internet_not_excellent": lambda db: speed(db)[1] != "Excellent",
    "assert_can_send_mms": lambda db, expected_status: mms_works(db) == expected_status,
    "assert_mobile_data_usage_exceeded": lambda db, expected_status: (
        record_of(db, "surroundings")["mobile_data_usage_exceeded"] == expected_status
    ),
}
