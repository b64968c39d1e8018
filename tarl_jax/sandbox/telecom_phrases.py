"""What is said about a phone: how its owner is asked for something, and how the owner understands.

Shared by the scripted owner (`telecom_user.py`) and the clerk that mends phones.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

SYSTEM = "You are the clerk of a phone carrier. Use the tools."

GREETINGS = ("Hi. ", "Hello! ", "", "Good day. ")
WHO = ("I am {name}, my number is {phone}.", "This is {name}, {phone}.")
ABROAD = (" I am abroad.", " I am travelling abroad.")
YES = ("Yes, please.", "Yes, {gb} GB.", "Go ahead, {gb} GB.")
NOT_SO_MUCH = ("I want {gb} GB.",)
STILL = (" It still does not work.", " But it is still not solved.")
SOLVED = ("It works now, thank you.", "That solved it. Thanks!")
GIVES_UP = ("This leads nowhere. Bye.",)

ASK_WHO = ("What is your phone number?",)
ASK_REFUEL = "You have used up your data. Shall I add {gb} GB for ${price:.2f}? (yes/no)"
ASK_PAY = "Your bill {bill} is overdue. I have sent you a payment request; please pay it."
TRY_AGAIN = ("Please try again: does it work now?", "That is done. Does it work now?")
TRANSFERRED = "YOU ARE BEING TRANSFERRED TO A HUMAN AGENT. PLEASE HOLD ON."


@dataclass(frozen=True)
class Ask:
    """A tool of the owner.

    sentence: how the clerk asks for it; mark: how its owner sees that it is meant, in lower case.
    """

    sentence: str
    mark: re.Pattern[str]


def _ask(sentence: str, mark: str) -> Ask:
    return Ask(sentence, re.compile(mark))


_CHANGE = r"(?:turn|toggle|switch|flip|disable|enable|deactivate|activate)\b.{0,40}"
# Those that change something first: "check the APN, then reset it" asks for the first mark found.
ASKS: dict[str, Ask] = {
    "toggle_airplane_mode": _ask("Please turn airplane mode off.",
                                 _CHANGE + r"(?:airplane|flight)[ -]mode"),
    "toggle_data_saver_mode": _ask("Please turn Data Saver off.", _CHANGE + r"data[ -]saver"),
    "toggle_roaming": _ask("Please turn data roaming on.", _CHANGE + r"roaming"),
    "toggle_data": _ask("Please turn mobile data on.",
                        _CHANGE + r"(?:mobile|cellular) data(?! roaming)"),
    "toggle_wifi_calling": _ask("Please turn Wi-Fi Calling off.", _CHANGE + r"wi-?fi[ -]calling"),
    "toggle_wifi": _ask("Please turn Wi-Fi on.", _CHANGE + r"wi-?fi(?![ -]calling)"),
    "reseat_sim_card": _ask(
        "Please take your SIM card out and put it back in.",
        r"re-?(?:seat|insert)|(?:take|remove|pull).{0,30}sim\b.{0,60}(?:back|again|insert)",
    ),
    "set_network_mode_preference": _ask(
        "Please set your network mode to 4g_5g_preferred.",
        r"(?:set|change|switch|put)\b.{0,40}(?:network (?:mode|type|preference)|preferred network)",
    ),
    "reset_apn_settings": _ask("Please reset your APN settings.", r"reset.{0,30}(?:apn|access p)"),
    "set_apn_settings": _ask("Please set your APN.", r"(?:set|change)\b.{0,30}\bapn\b"),
    "disconnect_vpn": _ask("Please disconnect your VPN.",
                           r"(?:disconnect|turn off|switch off|disable).{0,30}vpn"),
    "connect_vpn": _ask("Please connect your VPN.", r"(?<!dis)connect.{0,30}vpn"),
    "grant_app_permission": _ask(
        "Please grant the {app_name} app the {permission} permission.",
        r"(?:grant|allow|give)\b.{0,60}(?:permission|access)",
    ),
    "reboot_device": _ask("Please reboot your phone.", r"reboot|restart"),
    "make_payment": _ask("Please pay it.",
                         r"(?:please|can you|could you|now) pay\b|make (?:the|a) pay"),
    "check_payment_request": _ask("Please check your payment requests.",
                                  r"(?:check|see|look).{0,40}payment request"),
    "run_speed_test": _ask("Please run a speed test.", r"speed ?test"),
    "can_send_mms": _ask("Please try to send a picture message.",
                         r"(?:try|test|check|can you|able to).{0,40}(?:mms|picture message)"),
    "check_status_bar": _ask("Please look at your status bar.", r"status bar"),
    "check_network_mode_preference": _ask(
        "Please check your network mode preference.", r"network mode|network preference",
    ),
    "check_network_status": _ask("Please check your network status.",
                                 r"(?:network|connection) status"),
    "check_sim_status": _ask("Please check your SIM card.", r"\bsim\b"),
    "check_data_restriction_status": _ask("Please check whether Data Saver is on.",
                                          r"data[ -](?:saver|restriction)"),
    "check_apn_settings": _ask("Please check your APN settings.", r"\bapn\b|access point"),
    "check_wifi_calling_status": _ask("Please check whether Wi-Fi Calling is on.",
                                      r"wi-?fi[ -]calling"),
    "check_wifi_status": _ask("Please check your Wi-Fi.", r"wi-?fi"),
    "check_vpn_status": _ask("Please check your VPN.", r"\bvpn\b"),
    "check_app_permissions": _ask("Please check the permissions of the {app_name} app.",
                                  r"permission"),
    "check_app_status": _ask("Please check the status of the {app_name} app.",
                             r"status of.{0,30}\bapp\b|\bapp\b.{0,30}status"),
    "check_installed_apps": _ask("Please list your apps.", r"(?:installed|list).{0,20}apps"),
}  # fmt: skip
# What shows how a switch stands, and what that says where it is on.
STANDS = {
    "toggle_airplane_mode": ("check_network_status", "Airplane Mode: ON"),
    "toggle_data": ("check_network_status", "Mobile Data Enabled: Yes"),
    "toggle_roaming": ("check_network_status", "Data Roaming Enabled: Yes"),
    "toggle_data_saver_mode": ("check_data_restriction_status", "is ON"),
    "toggle_wifi": ("check_wifi_status", "Wi-Fi is ON"),
    "toggle_wifi_calling": ("check_wifi_calling_status", "turned ON"),
}
_OFF = re.compile(r"\boff\b|\b(?:disable|deactivate)")
_ON = re.compile(r"\bon\b(?! your)|\b(?:enable|activate)")
_MODES = re.compile(r"4g_5g_preferred|[234]g_only")
_PERMISSIONS = re.compile(r"\b(sms|storage|phone|network)\b(?= (?:permission|access))")
_WHO = re.compile(r"your (?:phone |mobile )?(?:number|name)|who (?:are you|am i)|date of birth")
_TRANSFER = re.compile(r"\btransferr(?:ed|ing)|human agent")
_ASKS_YES = re.compile(
    r"\(yes/no\)|\b(?:shall|may|should|can) i\b|(?:want|like) me to|refuel|\d gb"
)
_GB = re.compile(r"(\d+(?:\.\d+)?) ?gb")


@dataclass(frozen=True)
class Meant:
    """What a message asks its reader for.

    kind: "tool", "who", "transfer", "yes" or "other".
    tool: the first that it asks for; on: how its switch should stand, None where it does not say;
    mode, permission: that it names; gb: the data that it offers.
    """

    kind: str
    tool: str = ""
    on: bool | None = None
    mode: str = ""
    permission: str = ""
    gb: float | None = None


def read(message: str) -> Meant:
    """What a clerk's message asks for; of several things, one: users do one at a time."""
    said = message.lower()
    if _TRANSFER.search(said):
        return Meant("transfer")
    named = sorted((at, -len(name), name) for name in ASKS if (at := said.find(name)) >= 0)
    meant = (name for name, ask in ASKS.items() if ask.mark.search(said))
    tool = named[0][2] if named else next(meant, "")
    if "(yes/no)" in said or not tool:
        gb = _GB.search(said)
        if _ASKS_YES.search(said):
            return Meant("yes", gb=float(gb[1]) if gb else None)
        return Meant("who" if _WHO.search(said) else "other")
    on, off = bool(_ON.search(said)), bool(_OFF.search(said))
    mode, permission = _MODES.search(said), _PERMISSIONS.search(said)
    return Meant(
        "tool", tool, on if on != off and not named else None, mode[0] if mode else "",
        permission[1] if permission else "",
    )
