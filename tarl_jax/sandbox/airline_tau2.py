"""The airline tools as τ²-bench answers them; what they are for is told by `airline.py`.

Written from what the benchmark's own tools answered to recorded calls. Records are those of
`airline.py`, each with every field of its type (`typed_records.py`). What differs from τ-bench is
listed in docs/sandbox.md; a quirk is a fault of the benchmark that is kept.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

from tarl_jax.sandbox import airline
from tarl_jax.sandbox.airline import AIRPORTS, BAGGAGE_PRICE, INSURANCE_PRICE, NOW
from tarl_jax.sandbox.common_tau2 import calculate
from tarl_jax.sandbox.common_tools import transfer_to_human_agents
from tarl_jax.sandbox.domain import (
    Database,
    Domain,
    Record,
    State,
    ToolError,
    Unfinished,
    make_tool,
)
from tarl_jax.sandbox.typed_records import (
    Model,
    choice,
    dict_of,
    integer,
    list_of,
    number,
    optional,
    tagged,
    text,
)

CABIN = choice("business", "economy", "basic_economy")
ADDRESS = Model("Address", dict.fromkeys(
    ("address1", "address2", "city", "country", "state", "zip"), text
))
NAME = Model("Name", {"first_name": text, "last_name": text})
PASSENGER = Model("Passenger", {"first_name": text, "last_name": text, "dob": text})
PAYMENT = Model("Payment", {"payment_id": text, "amount": integer})
CERTIFICATE = Model("Certificate", {"source": text, "id": text, "amount": number})
PAYMENT_METHOD = tagged("source", {
    "credit_card": Model("CreditCard", dict.fromkeys(("source", "id", "brand", "last_four"), text)),
    "gift_card": Model("GiftCard", {"source": text, "id": text, "amount": number}),
    "certificate": CERTIFICATE,
})
FLIGHT_INFO = Model("FlightInfo", {"flight_number": text, "date": text})
RESERVATION = Model("Reservation", {
    "reservation_id": text, "user_id": text, "origin": text, "destination": text,
    "flight_type": choice("round_trip", "one_way"), "cabin": CABIN,
    "flights": list_of(Model("ReservationFlight", {
        "flight_number": text, "origin": text, "destination": text, "date": text, "price": integer,
    })),
    "passengers": list_of(PASSENGER), "payment_history": list_of(PAYMENT), "created_at": text,
    "total_baggages": integer, "nonfree_baggages": integer, "insurance": choice("yes", "no"),
    "status": optional(choice("cancelled")),
})


def _day(departure: str, arrival: str) -> Model:
    times = (f"{departure}_departure_time_est", f"{arrival}_arrival_time_est")
    return Model("FlightDateStatus", {"status": text} | dict.fromkeys(times, text))


_DAYS = {
    "available": Model("FlightDateStatus", {
        "status": text, "available_seats": dict_of(integer), "prices": dict_of(integer),
    }),
    "cancelled": Model("FlightDateStatus", {"status": text}),
    "landed": _day("actual", "actual"),
    "flying": _day("actual", "estimated"),
    "on time": _day("estimated", "estimated"),
    "delayed": _day("estimated", "estimated"),
}
TABLES = {
    "flights": Model("Flight", {
        "flight_number": text, "origin": text, "destination": text,
        "scheduled_departure_time_est": text, "scheduled_arrival_time_est": text,
        "dates": dict_of(tagged("status", _DAYS)),
    }),
    "users": Model("User", {
        "user_id": text, "name": NAME, "address": ADDRESS, "email": text, "dob": text,
        "payment_methods": dict_of(PAYMENT_METHOD), "saved_passengers": list_of(PASSENGER),
        "membership": text, "reservations": list_of(text),
    }),
    "reservations": RESERVATION,
}
_RESERVATION_IDS = ("HATHAT", "HATHAU", "HATHAV")  # three bookings, all users together
_CERTIFICATE_IDS = tuple(f"certificate_{number}" for number in (3221322, 3221323, 3221324))


def airline_domain(database: Database, policy: str = "") -> Domain:
    """The domain over `database`, whose records must be those of `TABLES`."""
    writes: dict[Callable[..., str], bool] = {  # tool -> may it change the state?
        book_reservation: True,
        calculate: False,
        cancel_reservation: True,
        get_reservation_details: False,
        get_user_details: False,
        list_all_airports: False,
        search_direct_flight: False,
        search_onestop_flight: False,
        send_certificate: True,
        transfer_to_human_agents: False,
        update_reservation_baggages: True,
        update_reservation_flights: True,
        update_reservation_passengers: True,
        get_flight_status: False,
    }
    described = airline.airline_domain(database).tools
    tools = [make_tool(function, write=write, like=described.get(function.__name__))
             for function, write in writes.items()]
    return Domain("airline", policy, database, tools, rules="tau2")


# --- reading --------------------------------------------------------------------------------------


def get_reservation_details(db: State, reservation_id: str) -> str:
    return json.dumps(_find(db, "reservations", reservation_id))


def get_user_details(db: State, user_id: str) -> str:
    return json.dumps(_find(db, "users", user_id))


def list_all_airports(db: State) -> str:
    return json.dumps([{"iata": code, "city": city} for code, city in AIRPORTS.items()])


def search_direct_flight(db: State, origin: str, destination: str, date: str) -> str:
    return json.dumps(_departures(db, origin, destination, date))


def search_onestop_flight(db: State, origin: str, destination: str, date: str) -> str:
    pairs = []
    for first in _departures(db, origin, None, date):
        landing = first["scheduled_arrival_time_est"]
        # Quirk: the next day is counted within May 2024, and without a leading zero.
        second_date = f"2024-05-{int(date[-2:]) + 1}" if "+1" in landing else date
        for second in _departures(db, first["destination"], destination, second_date):
            # Quirk: compared as text also where the second flight leaves on the next day.
            if second["scheduled_departure_time_est"] >= landing:
                pairs.append([first | {"date": date}, second | {"date": second_date}])
    return json.dumps(pairs)


def get_flight_status(db: State, flight_number: str, date: str) -> str:
    """Get the status of a flight on a day.

    Args:
        flight_number: The flight number, such as 'HAT001'.
        date: The day of departure as YYYY-MM-DD, such as '2024-05-01'.
    """
    return _flight_on(db, flight_number, date)["status"]


# --- writing --------------------------------------------------------------------------------------


def book_reservation(
    db: State, user_id: str, origin: str, destination: str, flight_type: str, cabin: str,
    flights: list[Any], passengers: list[Any], payment_methods: list[Any],
    total_baggages: int, nonfree_baggages: int, insurance: str,
) -> str:  # fmt: skip
    flights = _read_all(FLIGHT_INFO, flights)
    passengers = _read_all(PASSENGER, passengers)
    payments = _read_all(PAYMENT, payment_methods)
    _find(db, "users", user_id)
    reservation_id = next((i for i in _RESERVATION_IDS if not db.get("reservations", i)), None)
    if reservation_id is None:
        raise ToolError("Too many reservations")
    reservation = RESERVATION.read({
        "reservation_id": reservation_id, "user_id": user_id, "origin": origin,
        "destination": destination, "flight_type": flight_type, "cabin": cabin, "flights": [],
        "passengers": passengers, "payment_history": payments, "created_at": NOW,
        "total_baggages": total_baggages, "nonfree_baggages": nonfree_baggages,
        "insurance": insurance,
    })
    total = 0
    for flight in flights:
        booked = _booked(db, flight, cabin, len(passengers))
        reservation["flights"].append(booked)
        total += booked["price"] * len(passengers)
    if insurance == "yes":
        total += INSURANCE_PRICE * len(passengers)
    total += BAGGAGE_PRICE * nonfree_baggages
    _check_payments(_find(db, "users", user_id)["payment_methods"], payments, total)
    user = db.edit("users", user_id)
    for payment in payments:
        method = user["payment_methods"].get(payment["payment_id"])
        if method is None:  # quirk: a certificate that pays twice is lost, and nothing booked
            raise Unfinished(repr(payment["payment_id"]))
        if method["source"] == "gift_card":
            method["amount"] -= payment["amount"]
        elif method["source"] == "certificate":
            del user["payment_methods"][payment["payment_id"]]
    for flight in flights:
        day = db.edit("flights", flight["flight_number"])["dates"][flight["date"]]
        day["available_seats"][cabin] -= len(passengers)
    db.add("reservations", reservation_id, reservation)
    user["reservations"].append(reservation_id)
    return json.dumps(reservation)


def cancel_reservation(db: State, reservation_id: str) -> str:
    _find(db, "reservations", reservation_id)
    reservation = db.edit("reservations", reservation_id)
    # Quirk: the refund is noted, but neither gift cards nor seats come back.
    history = reservation["payment_history"]
    history += [payment | {"amount": -payment["amount"]} for payment in history]
    reservation["status"] = "cancelled"
    return json.dumps(reservation)


def send_certificate(db: State, user_id: str, amount: float) -> str:
    methods = _find(db, "users", user_id)["payment_methods"]
    method_id = next((i for i in _CERTIFICATE_IDS if i not in methods), None)
    if method_id is None:
        raise ToolError("Too many certificates")
    certificate = CERTIFICATE.read({"source": "certificate", "id": method_id, "amount": amount})
    db.edit("users", user_id)["payment_methods"][method_id] = certificate
    return f"Certificate {method_id} added to user {user_id} with amount {amount}."


def update_reservation_baggages(
    db: State, reservation_id: str, total_baggages: int, nonfree_baggages: int, payment_id: str
) -> str:
    reservation = _find(db, "reservations", reservation_id)
    further = max(0, nonfree_baggages - reservation["nonfree_baggages"])
    reservation = _charge(db, reservation, payment_id, BAGGAGE_PRICE * further)
    # Quirk: any number is taken, also fewer bags, and more that are paid for than there are.
    reservation["total_baggages"] = copy.deepcopy(total_baggages)
    reservation["nonfree_baggages"] = nonfree_baggages
    return json.dumps(reservation)


def update_reservation_flights(
    db: State, reservation_id: str, cabin: str, flights: list[Any], payment_id: str
) -> str:
    flights = _read_all(FLIGHT_INFO, flights)
    reservation = _find(db, "reservations", reservation_id)
    passengers = len(reservation["passengers"])
    booked = [_kept(reservation, flight, cabin) or _booked(db, flight, cabin, passengers)
              for flight in flights]
    difference = sum(flight["price"] for flight in booked)
    difference -= sum(flight["price"] for flight in reservation["flights"])
    reservation = _charge(db, reservation, payment_id, difference * passengers)
    # Quirk: no seat is taken or given back.
    reservation["flights"] = booked
    reservation["cabin"] = copy.deepcopy(cabin)
    return json.dumps(reservation)


def update_reservation_passengers(
    db: State, reservation_id: str, passengers: list[Any]
) -> str:
    passengers = _read_all(PASSENGER, passengers)
    reservation = _find(db, "reservations", reservation_id)
    if len(passengers) != len(reservation["passengers"]):
        raise ToolError("Number of passengers does not match")
    reservation = db.edit("reservations", reservation_id)
    reservation["passengers"] = copy.deepcopy(passengers)
    return json.dumps(reservation)


# --- shared by the tools --------------------------------------------------------------------------


def _read_all(model: Model, items: Any) -> Any:
    """The items as records where all are objects; otherwise as they are."""
    return [model.read(i) for i in items] if all(isinstance(i, dict) for i in items) else items


def _find(db: State, table: str, key: str) -> Record:
    record = db.get(table, key)
    if record is None:
        raise ToolError(f"{table.removesuffix('s').capitalize()} {key} not found")
    return record


def _flight_on(db: State, number: str, date: str) -> Record:
    dates = _find(db, "flights", number)["dates"]
    if date not in dates:
        raise ToolError(f"Flight {number} not found on date {date}")
    return dates[date]


def _departures(db: State, origin: Any, destination: Any, date: Any) -> list[Record]:
    """What can be booked on a day, with its seats and prices; None stands for any airport."""
    found = []
    for flight in db.table("flights").values():
        if origin is not None and flight["origin"] != origin:
            continue
        if destination is not None and flight["destination"] != destination:
            continue
        day = flight["dates"].get(date)
        if day is not None and day["status"] == "available":
            found.append({
                "flight_number": flight["flight_number"], "origin": flight["origin"],
                "destination": flight["destination"], "status": "available",
                "scheduled_departure_time_est": flight["scheduled_departure_time_est"],
                "scheduled_arrival_time_est": flight["scheduled_arrival_time_est"],
                "date": None, "available_seats": day["available_seats"], "prices": day["prices"],
            })
    return found


def _booked(db: State, flight: Any, cabin: str, passengers: int) -> Record:
    """The flight as a reservation has it, at today's price. Raises ToolError if it is not free."""
    number, date = flight["flight_number"], flight["date"]
    day = _flight_on(db, number, date)
    if day["status"] != "available":
        raise ToolError(f"Flight {number} not available on date {date}")
    if day["available_seats"][cabin] < passengers:
        raise ToolError(f"Not enough seats on flight {number}")
    return _segment(db, number, date, day["prices"][cabin])


def _kept(reservation: Record, flight: Any, cabin: str) -> Record | None:
    """The flight at the price it was booked for, if the reservation has it in this cabin."""
    for old in reservation["flights"]:
        same = old["flight_number"] == flight["flight_number"] and old["date"] == flight["date"]
        if same and cabin == reservation["cabin"]:
            return dict(old)
    return None


def _segment(db: State, number: str, date: str, price: int) -> Record:
    route = _find(db, "flights", number)
    return {"flight_number": number, "origin": route["origin"],
            "destination": route["destination"], "date": date, "price": price}


def _check_payments(methods: dict[str, Record], payments: Any, total: float) -> None:
    for payment in payments:
        method_id = payment["payment_id"]
        if method_id not in methods:
            raise ToolError(f"Payment method {method_id} not found")
        method = methods[method_id]
        # Quirk: each payment is compared with the whole balance, also if one method pays twice.
        if method["source"] != "credit_card" and method["amount"] < payment["amount"]:
            raise ToolError(f"Not enough balance in payment method {method_id}")
    paid = sum(payment["amount"] for payment in payments)
    if paid != total:
        raise ToolError(f"Payment amount does not add up, total price is {total}, but paid {paid}")


def _charge(db: State, reservation: Record, method_id: str, amount: float) -> Record:
    """The reservation to write in, once the dollars are paid, or refunded if negative."""
    methods = _find(db, "users", reservation["user_id"])["payment_methods"]
    if method_id not in methods:
        raise ToolError("Payment method not found")
    source = methods[method_id]["source"]
    if source == "certificate":
        raise ToolError("Certificate cannot be used to update reservation")
    if source == "gift_card":
        if methods[method_id]["amount"] < amount:
            raise ToolError("Gift card balance is not enough")
        db.edit("users", reservation["user_id"])["payment_methods"][method_id]["amount"] -= amount
    reservation = db.edit("reservations", reservation["reservation_id"])
    if amount != 0:
        try:
            payment = PAYMENT.read({"payment_id": method_id, "amount": amount})
        except ToolError as error:  # quirk: a part of a dollar is taken, then refused
            raise Unfinished(str(error)) from None
        reservation["payment_history"].append(payment)
    return reservation
