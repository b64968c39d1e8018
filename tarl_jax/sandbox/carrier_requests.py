"""What the users of the embedded airline ask for, and the calls that fulfil it."""

from __future__ import annotations

import dataclasses
from typing import Any

from tarl_jax.sandbox.desk import Wish
from tarl_jax.types import Call

KINDS = ("cancel", "bags", "cabin", "flight", "passenger", "add")
READS = ("ask_total", "ask_bags")  # kinds of requests that are served without a write
DENIALS = ("", "insurance", "reason", "fare", "unavailable", "fewer", "number", "method")
CHANGES = ("", "drop", "option")
COVERED = ("health", "weather")  # reasons for which an insured traveller may cancel
UNCOVERED = ("plans", "price")
CANCELLED = "airline"  # the reason where the airline cancelled the flight


@dataclasses.dataclass(frozen=True)
class Request(Wish):
    """One wish about one reservation; `Wish` says what the last fields mean.

    Attributes:
      kind: one of KINDS, or of READS. "flight" moves a flight to another day; "add" asks for a
        further passenger, which is always forbidden.
      reservation_id: the reservation, e.g. "ABCDE1".
      payment_id: pays the difference, or receives it.
      method: how the user names it, e.g. "credit card".
      bags, nonfree: how many there are to be in all, and how many of them are paid for.
      cabin: the cabin of the call that changes flights: the wanted one, or the one there is.
      flights: of that call, every flight with its day.
      flight, date: the flight that is moved, and the day it is moved to.
      searches: arguments of the searches that show whether there are seats.
      passengers: of the call that changes them, every passenger.
      old, new, dob: who is replaced, by whom, and when they were born.
      reason: of a cancellation.
      denial: one of DENIALS.
      change: one of CHANGES.
    """

    kind: str
    reservation_id: str
    payment_id: str = ""
    method: str = ""
    bags: int = 0
    nonfree: int = 0
    cabin: str = ""
    flights: list[dict[str, str]] = dataclasses.field(default_factory=list)
    flight: str = ""
    date: str = ""
    searches: list[dict[str, str]] = dataclasses.field(default_factory=list)
    passengers: list[dict[str, str]] = dataclasses.field(default_factory=list)
    old: str = ""
    new: str = ""
    dob: str = ""
    reason: str = ""
    denial: str = ""
    change: str = ""
    then: Request | None = None
    aside: str = ""

    @property
    def record_id(self) -> str:
        return self.reservation_id

    @property
    def call(self) -> Call | None:
        return None if self.kind in READS else write_call(self)

    @property
    def option(self) -> str:
        """How the user names what it wants of several: a number of bags, a cabin, a day."""
        bags = f"{self.bags} bag{'s' if self.bags != 1 else ''}"
        options = {"bags": bags, "cabin": self.cabin.replace("_", " "), "flight": self.date}
        return options.get(self.kind, "")


def write_call(wish: Request) -> Call:
    """The tool call that a wish asks for, allowed or not."""
    reservation: dict[str, Any] = {"reservation_id": wish.reservation_id}
    payment = {"payment_id": wish.payment_id}
    match wish.kind:
        case "cancel":
            return Call("cancel_reservation", reservation)
        case "bags":
            bags = {"total_baggages": wish.bags, "nonfree_baggages": wish.nonfree}
            return Call("update_reservation_baggages", {**reservation, **bags, **payment})
        case "cabin" | "flight":
            flights = {"cabin": wish.cabin, "flights": wish.flights}
            return Call("update_reservation_flights", {**reservation, **flights, **payment})
        case "passenger" | "add":
            passengers = {"passengers": wish.passengers}
            return Call("update_reservation_passengers", {**reservation, **passengers})
    raise ValueError(f"request kind {wish.kind!r}: expected one of {', '.join(KINDS)}")
