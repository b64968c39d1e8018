"""What a traveller might ask: requests about reservations, allowed or not, drawn at random.

What is allowed, `carrier_policy.md` says. Reservations of which a flight has been flown belong to
a human agent, and of which one is under way or leaves today are close to it: about all these there
are questions only, but for the cancellation of flights that the airline has cancelled.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

from tarl_jax.sandbox.airline import BAGGAGE_PRICE, NOW
from tarl_jax.sandbox.carrier import DAYS, FREE_BAGS, PRICES, birthday
from tarl_jax.sandbox.carrier_requests import CANCELLED, COVERED, READS, UNCOVERED, Request
from tarl_jax.sandbox.domain import Database, Record
from tarl_jax.sandbox.shop import FIRST_NAMES, LAST_NAMES

KIND_WEIGHTS = {"cancel": 0.3, "bags": 0.2, "cabin": 0.15, "flight": 0.2, "passenger": 0.15,
                "ask_total": 0.05, "ask_bags": 0.05}
DENIAL_WEIGHTS = {"insurance": 0.3, "reason": 0.3, "fare": 0.3, "unavailable": 0.15, "fewer": 0.1,
                  "number": 0.1, "method": 0.15}
_METHOD_WORDS = {"credit_card": "credit card", "gift_card": "gift card",
                 "certificate": "certificate"}
_TODAY = NOW[:10]


def make_request(
    rng: random.Random, database: Database, user: Record, reservation: Record, forbidden: bool
) -> Request | None:
    """A request about `reservation`, allowed or forbidden; None if it admits no such request."""
    makers = _Makers(rng, database, user, reservation)
    if not all(flight["date"] > _TODAY for flight in reservation["flights"]):
        if forbidden:
            return None
        kinds = ("cancel", *READS) if _cancelled(database, reservation) else READS
        return makers.of_kind(rng.choice(kinds), "")
    weights = DENIAL_WEIGHTS if forbidden else KIND_WEIGHTS
    for name in _weighted(rng, weights):
        request = makers.denied(name) if forbidden else makers.of_kind(name, "")
        if request is not None:
            return request
    return None


def with_change(
    rng: random.Random, database: Database, user: Record, reservation: Record, request: Request
) -> Request:
    """The request with a change of mind, where it admits one."""
    if request.kind in READS:
        return request
    fields = dict(vars(request))
    if request.kind not in ("bags", "cabin", "flight") or rng.random() >= 0.75:
        return Request(**{**fields, "change": "drop"})
    makers = _Makers(rng, database, user, reservation, request)
    then = makers.of_kind(request.kind, "")
    return Request(**{**fields, "change": "option", "then": then}) if then else request


def free_bags(user: Record, reservation: Record) -> int:
    """How many bags of a reservation are free."""
    each = FREE_BAGS[user["membership"]][list(PRICES).index(reservation["cabin"])]
    return each * len(reservation["passengers"])


def _cancelled(database: Database, reservation: Record) -> bool:
    """Whether the airline cancelled a flight of it, and none of the others has left or leaves
    today."""
    states = [
        database["flights"][f["flight_number"]]["dates"][f["date"]]["status"]
        for f in reservation["flights"]
    ]
    return "cancelled" in states and set(states) <= {"cancelled", "available"}


def _weighted(rng: random.Random, weights: dict[str, float]) -> Iterator[str]:
    """All keys, those of more weight earlier on the average."""
    yield from sorted(weights, key=lambda key: rng.random() ** (1 / weights[key]), reverse=True)


class _Makers:
    """Makes requests about one reservation.

    first: where a user changes its mind, what it wanted: then its payment method stays, and what
    it had asked for is avoided.
    """

    def __init__(
        self, rng: random.Random, database: Database, user: Record, reservation: Record,
        first: Request | None = None,
    ):  # fmt: skip
        self.rng = rng
        self.flights = database["flights"]
        self.user = user
        self.reservation = reservation
        self.first = first
        self.count = len(reservation["passengers"])

    def denied(self, denial: str) -> Request | None:
        """A request that is forbidden on that ground alone."""
        kinds = {
            "insurance": ("cancel",), "reason": ("cancel",), "fare": ("flight",),
            "unavailable": ("cabin", "flight"), "fewer": ("bags",), "number": ("add",),
            "method": ("bags", "cabin", "flight"),
        }[denial]
        return self.of_kind(self.rng.choice(kinds), denial)

    def of_kind(self, kind: str, denial: str) -> Request | None:
        match kind:
            case "cancel":
                return self._cancel(denial)
            case "bags":
                return self._bags(denial)
            case "cabin":
                return self._cabin(denial)
            case "flight":
                return self._flight(denial)
            case "passenger" | "add":
                return self._passenger(kind, denial)
        return self._request(kind)

    def _request(self, kind: str, **fields: Any) -> Request:
        return Request(kind, self.reservation["reservation_id"], **fields)

    def _cancel(self, denial: str) -> Request | None:
        reservation = self.reservation
        insured = reservation["insurance"] == "yes"
        booked = datetime.fromisoformat(reservation["created_at"])
        recent = datetime.fromisoformat(NOW) - booked <= timedelta(hours=24)
        by_airline = any(flight["date"] <= _TODAY for flight in reservation["flights"])
        free = recent or reservation["cabin"] == "business" or by_airline
        # In words that fit one ground only: who is not insured names a good reason.
        reasons: tuple[str, ...] = {
            "insurance": () if free or insured else COVERED,
            "reason": UNCOVERED if insured and not free else (),
            "": COVERED + UNCOVERED if free else COVERED if insured else (),
        }[denial]
        if by_airline:
            reasons = (CANCELLED,)
        if not reasons:
            return None
        return self._request("cancel", reason=self.rng.choice(reasons), denial=denial)

    def _bags(self, denial: str) -> Request | None:
        has, free = self.reservation["total_baggages"], free_bags(self.user, self.reservation)
        # Some of the bags cost something: else it would not matter what pays.
        least = max(has, free)
        span = range(has) if denial == "fewer" else range(least + 1, least + 4)
        totals = [n for n in span if self.first is None or n != self.first.bags]
        if not totals:
            return None
        bags = self.rng.choice(totals)
        nonfree = max(0, bags - free)
        further = max(0, nonfree - self.reservation["nonfree_baggages"])
        paid = self._payment(BAGGAGE_PRICE * further, denial)
        if paid is None:
            return None
        return self._request("bags", bags=bags, nonfree=nonfree, denial=denial, **paid)

    def _cabin(self, denial: str) -> Request | None:
        legs, old = self.reservation["flights"], self.reservation["cabin"]
        cabins = [
            cabin for cabin in PRICES
            if cabin != old and (self.first is None or cabin != self.first.cabin)
            and all(self._seats(f, f["date"], cabin) for f in legs) != (denial == "unavailable")
        ]
        if not cabins:
            return None
        cabin = self.rng.choice(cabins)
        now = sum(self._day(f, f["date"])["prices"][cabin] for f in legs)
        paid = self._payment((now - sum(f["price"] for f in legs)) * self.count, denial)
        if paid is None:
            return None
        return self._request(
            "cabin", cabin=cabin, denial=denial, **paid,
            flights=[{"flight_number": f["flight_number"], "date": f["date"]} for f in legs],
            searches=[self._search(f, f["date"]) for f in legs],
        )

    def _flight(self, denial: str) -> Request | None:
        legs, cabin = self.reservation["flights"], self.reservation["cabin"]
        stops = len(legs) != (2 if self.reservation["flight_type"] == "round_trip" else 1)
        if stops or (cabin == "basic_economy") != (denial == "fare"):
            return None  # flights of one way would have to be moved together
        place = self.rng.randrange(len(legs))
        if self.first is not None:
            place = [f["flight_number"] for f in legs].index(self.first.flight)
        leg = legs[place]
        after = legs[place - 1]["date"] if place else _TODAY
        before = legs[place + 1]["date"] if place + 1 < len(legs) else "9999"
        dates = [
            date for date in map(str, DAYS)
            if after < date < before and date != leg["date"]
            and (self.first is None or date != self.first.date)
            and self._seats(leg, date, cabin) != (denial == "unavailable")
        ]
        if not dates:
            return None
        date = self.rng.choice(dates)
        difference = self._day(leg, date)["prices"][cabin] - leg["price"]
        paid = self._payment(difference * self.count, denial)
        if paid is None:
            return None
        return self._request(
            "flight", cabin=cabin, flight=leg["flight_number"], date=date, denial=denial, **paid,
            flights=[
                {"flight_number": f["flight_number"], "date": date if f is leg else f["date"]}
                for f in legs
            ],
            searches=[self._search(leg, date)],
        )

    def _passenger(self, kind: str, denial: str) -> Request:
        passengers = [dict(p) for p in self.reservation["passengers"]]
        first_names = {p["first_name"] for p in passengers}
        new = {
            "first_name": self.rng.choice([n for n in FIRST_NAMES if n not in first_names]),
            "last_name": self.rng.choice((self.user["name"]["last_name"], *LAST_NAMES[:8])),
            "dob": birthday(self.rng),
        }
        old = ""
        if kind == "add":
            passengers.append(new)
        else:
            place = self.rng.randrange(len(passengers))
            old, passengers[place] = _name(passengers[place]), new
        return self._request(
            kind, passengers=passengers, old=old, new=_name(new), dob=new["dob"], denial=denial
        )

    def _payment(self, amount: float, denial: str) -> dict[str, str] | None:
        """What pays the amount: fields of a request; None if nothing can, or if it is nothing, so
        that it would not matter what pays."""
        if amount == 0 and not denial:
            return None
        methods = [
            method for method in self.user["payment_methods"].values()
            if (method["source"] == "certificate") == (denial == "method")
            and (method["source"] != "gift_card" or method["amount"] >= amount)
            and (self.first is None or method["id"] == self.first.payment_id)
        ]
        if not methods:
            return None
        method = self.rng.choice(methods)
        return {"payment_id": method["id"], "method": _METHOD_WORDS[method["source"]]}

    def _day(self, flight: Record, date: str) -> Record:
        return self.flights[flight["flight_number"]]["dates"][date]

    def _seats(self, flight: Record, date: str, cabin: str) -> bool:
        """Whether all passengers can have a seat on a flight that can be booked."""
        day = self._day(flight, date)
        return day["status"] == "available" and day["available_seats"][cabin] >= self.count

    def _search(self, flight: Record, date: str) -> dict[str, str]:
        return {"origin": flight["origin"], "destination": flight["destination"], "date": date}


def _name(person: Record) -> str:
    return f"{person['first_name']} {person['last_name']}"
