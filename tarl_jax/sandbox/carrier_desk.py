"""The airline's desk: what the embedded airline's users, clerk and judge know of it."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from typing import Any

from tarl_jax.config import ShopConfig
from tarl_jax.sandbox import carrier_blueprint
from tarl_jax.sandbox.carrier import make_carrier
from tarl_jax.sandbox.carrier_phrases import PHRASES
from tarl_jax.sandbox.carrier_requests import READS, Request, write_call
from tarl_jax.sandbox.desk import Customer, Desk, Errs, call_key
from tarl_jax.sandbox.domain import Database, Domain, Record
from tarl_jax.sandbox.shop import FIRST_NAMES
from tarl_jax.types import Call

# Of each of these a proposal names one, if any: all of them say nothing.
_NAMED = tuple(map(re.compile, (
    r"\b[A-Z]{5}\d\b", r"\b(?:credit_card|gift_card|certificate)_\w+", r"\bHAT\d+\b",
    r"\b\d{4}-\d\d-\d\d\b", r"\bbasic economy\b|\beconomy\b|\bbusiness\b", r"\b\d+ bags?\b",
)))  # fmt: skip
_RESERVATION, _, _, _DATE, _CABIN, _ = _NAMED


class CarrierDesk(Desk[Request]):
    source = "carrier"
    table = "reservations"
    record, a_record = "reservation", "a reservation"
    wish = Request
    reads = READS
    identify = ("user_id",)
    early = frozenset({"insurance", "reason", "fare", "fewer", "number", "method"})
    finders = ()
    phrases = PHRASES

    # --- tasks ------------------------------------------------------------------------------------

    def make_database(self, config: ShopConfig, branch: int) -> Database:
        return make_carrier(config.seed, config.num_users, branch, config.orders_per_user)

    def make_request(
        self, rng: random.Random, database: Database, user: Record, record: Record, forbidden: bool
    ) -> Request | None:
        return carrier_blueprint.make_request(rng, database, user, record, forbidden)

    def with_change(
        self, rng: random.Random, database: Database, user: Record, record: Record,
        request: Request,
    ) -> Request:  # fmt: skip
        return carrier_blueprint.with_change(rng, database, user, record, request)

    def user_id(self, domain: Domain, customer: Customer) -> str:
        users = domain.database["users"].items()
        return next(user_id for user_id, user in users if user["email"] == customer.email)

    def known(self, customer: Customer, user_id: str) -> str:
        return f"user id {user_id}"

    def right_answer(self, request: Request, record: Record) -> str:
        if request.kind == "ask_bags":
            return str(record["total_baggages"])
        return str(sum(payment["amount"] for payment in record["payment_history"]))

    # --- the user ---------------------------------------------------------------------------------

    def words(self, wish: Request) -> dict[str, Any]:
        return {"reservation": wish.reservation_id, "option": wish.option, "flight": wish.flight,
                "method": wish.method, "old": wish.old, "new": wish.new, "dob": wish.dob}

    def matches(self, message: str, wish: Request) -> bool:
        words = [wish.reservation_id, wish.payment_id, wish.option, wish.flight, wish.old,
                 wish.new, wish.dob]
        if not all(word in message for word in words):
            return False
        named = set(re.findall(r"\w+", message)) & set(FIRST_NAMES)
        each = [{found.strip() for found in sort.findall(message)} for sort in _NAMED]
        option = wish.option and wish.kind != "flight"
        return (
            named <= set(f"{wish.old} {wish.new}".split())
            and all(len(found) <= 1 for found in each)
            and (not option or {wish.option} in each)  # 2 bags are not 12 bags
        )

    # --- the clerk --------------------------------------------------------------------------------

    def find_user(self, customer: Customer) -> Call | None:
        return None

    def look(self, wish: Request) -> Call:
        return Call("get_reservation_details", {"reservation_id": wish.reservation_id})

    def look_further(self, wish: Request, user_id: str) -> list[Call]:
        if wish.kind not in ("bags", "cabin", "flight"):
            return []
        return [_profile(user_id), *_searches(wish)]

    def answer(self, request: Request, record: Record) -> str:
        return PHRASES.answers[request.kind].format(
            reservation=request.reservation_id, answer=self.right_answer(request, record)
        )

    def proposal(self, wish: Request, record: Record, known: Mapping[str, Any]) -> str:
        return PHRASES.proposals[wish.kind].format(
            **self.words(wish), nonfree=wish.nonfree, payment=wish.payment_id
        )

    def refusal(self, ground: str, request: Request, record: Record) -> str:
        # A write that is rejected against expectation is rejected for want of seats or money.
        return PHRASES.refusals[ground or "unavailable"].format(
            cabin=_cabin_words(record), bags=record["total_baggages"],
            option=request.option or "it",
        )

    def wrong_grounds(self, request: Request) -> list[str]:
        return {
            "cancel": ["insurance", "reason"], "bags": ["fewer", "method"],
            "cabin": ["unavailable", "method"], "flight": ["unavailable", "fare"],
        }.get(request.kind, ["number"])

    def write(
        self, wish: Request, record: Record, known: Mapping[str, Any], errs: Errs,
        rng: random.Random,
    ) -> Call:  # fmt: skip
        """As `ClerkConfig` has it: `wrong_reason` misreads a rule, which bags are free;
        `wrong_item` takes another payment method; `wrong_variant` another cabin, day, number of
        bags or day of birth."""
        call = write_call(wish)
        kwargs = dict(call.kwargs)
        if wish.kind == "bags":
            counts = [n for n in (wish.nonfree - 1, wish.nonfree + 1) if 0 <= n <= wish.bags]
            if counts and errs("wrong_reason"):
                kwargs["nonfree_baggages"] = rng.choice(counts)
        if "payment_id" in kwargs:
            profile = known[call_key(_profile(record["user_id"]))]
            others = [m["id"] for m in profile["payment_methods"].values()
                      if m["source"] != "certificate" and m["id"] != wish.payment_id]
            if others and errs("wrong_item"):
                kwargs["payment_id"] = rng.choice(others)
        if wish.kind != "cancel" and errs("wrong_variant"):
            kwargs |= self._mixed_up(wish, record, known, rng)
        return Call(call.name, kwargs)

    def _mixed_up(
        self, wish: Request, record: Record, known: Mapping[str, Any], rng: random.Random
    ) -> dict[str, Any]:
        """Arguments that are not those that were asked for; the tools take them."""
        match wish.kind:
            case "bags":
                return {"total_baggages": wish.bags + 1}
            case "cabin":
                found = [known[call_key(search)] for search in _searches(wish)]
                seats = [f["available_seats"] for flights in found for f in flights]
                count = len(record["passengers"])
                others = [cabin for cabin in ("basic_economy", "economy", "business")
                          if cabin != wish.cabin and all(s[cabin] >= count for s in seats)]
                return {"cabin": rng.choice(others or [record["cabin"]])}
            case "flight":
                return {"flights": [{"flight_number": f["flight_number"], "date": f["date"]}
                                    for f in record["flights"]]}
        before = {(p["first_name"], p["last_name"]): p for p in record["passengers"]}
        dobs = [p["dob"] for p in before.values()]
        return {"passengers": [
            p if (p["first_name"], p["last_name"]) in before else {**p, "dob": rng.choice(dobs)}
            for p in wish.passengers
        ]}

    # --- the judge --------------------------------------------------------------------------------

    def evidence(self, request: Request, user_id: str) -> list[Call]:
        if request.denial == "unavailable":
            return _searches(request)
        return [] if request.denial in ("number", "method") else [self.look(request)]

    def check_refusal(
        self, request: Request, text: str, record: Record | None
    ) -> tuple[int, str] | None:
        if request.denial == "fare" and record is not None:
            right = set(_CABIN.findall(text)) == {_cabin_words(record)}
            return None if right else (-1, "tells a wrong cabin")
        if request.denial == "fewer" and record is not None:
            right = re.findall(r"\d+", text) == [str(record["total_baggages"])]
            return None if right else (-1, "tells a wrong number of bags")
        if request.denial == "unavailable":
            right = {*_CABIN.findall(text), *_DATE.findall(text)} == {request.option}
            return None if right else (0, "names another option than the one that was asked for")
        return None

    def told(self, request: Request, text: str) -> set[str]:
        return set(re.findall(r"\d+(?:\.\d+)?", _RESERVATION.sub("", text)))

    # --- speech -----------------------------------------------------------------------------------

    def values(self, customer: Customer, user_id: str) -> list[str]:
        return [f"My user id is {user_id}."]

    def things(self, request: Request) -> list[str]:
        words = (request.option, request.method, request.flight, request.old, request.new)
        return [word for word in words if word]


def _profile(user_id: str) -> Call:
    return Call("get_user_details", {"user_id": user_id})


def _searches(wish: Request) -> list[Call]:
    return [Call("search_direct_flight", search) for search in wish.searches]


def _cabin_words(reservation: Record) -> str:
    return reservation["cabin"].replace("_", " ")
