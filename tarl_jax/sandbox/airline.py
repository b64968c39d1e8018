"""The airline domain of τ-bench: 14 tools over flights, reservations and users.

Written from the benchmark's data: its tool schemas, and what its own tools answered to recorded
calls. Outputs and state hashes equal the recorded ones, quirks included; only a missing argument
is refused in other words. Records look so (prices and amounts in dollars, dates as
YYYY-MM-DD, times as HH:MM:SS EST with "+1" appended on the day after):

- flights: flight_number, origin, destination, scheduled_departure_time_est,
  scheduled_arrival_time_est, dates {date: {status, and where that is "available":
  available_seats {cabin: count}, prices {cabin: price}}};
- reservations: reservation_id, user_id, origin, destination, flight_type, cabin, flights
  [{origin, destination, flight_number, date, price}], passengers [{first_name, last_name, dob}],
  payment_history [{payment_id, amount, negative where refunded}], created_at, total_baggages,
  nonfree_baggages, insurance, status once cancelled;
- users: name, address, email, dob, payment_methods {id: {source, id, amount unless source is
  "credit_card"}}, saved_passengers, membership, reservations [reservation id].

No tool writes to flights: a booking leaves the number of free seats as it was.
"""

import json
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from itertools import count
from typing import Annotated, Any, Literal, TypedDict, get_args

from tarl_jax.sandbox.common_tools import (
    calculate,
    find_payment_method,
    find_record,
    think,
    transfer_to_human_agents,
)
from tarl_jax.sandbox.domain import Database, Domain, Record, State, ToolError, make_tool

Cabin = Literal["basic_economy", "economy", "business"]
FlightType = Literal["one_way", "round_trip"]
YesNo = Literal["yes", "no"]

NOW = "2024-05-15T15:00:00"  # EST, the policy's current time
BAGGAGE_PRICE = 50  # dollars per bag that is not free
INSURANCE_PRICE = 30  # dollars per passenger
AIRPORTS = {
    "SFO": "San Francisco", "JFK": "New York", "LAX": "Los Angeles", "ORD": "Chicago",
    "DFW": "Dallas", "DEN": "Denver", "SEA": "Seattle", "ATL": "Atlanta", "MIA": "Miami",
    "BOS": "Boston", "PHX": "Phoenix", "IAH": "Houston", "LAS": "Las Vegas", "MCO": "Orlando",
    "EWR": "Newark", "CLT": "Charlotte", "MSP": "Minneapolis", "DTW": "Detroit",
    "PHL": "Philadelphia", "LGA": "LaGuardia",
}  # fmt: skip
_FIRST_CERTIFICATE = 3221322  # of a user
_RESERVATION_IDS = ("HATHAT", "HATHAU", "HATHAV")  # of the bookings of an episode


class Flight(TypedDict):
    """A flight on a day."""

    flight_number: Annotated[str, "The flight number, such as 'HAT001'."]
    date: Annotated[str, "The day of departure as YYYY-MM-DD, such as '2024-05-01'."]


class Passenger(TypedDict):
    """A person who flies."""

    first_name: Annotated[str, "The passenger's first name, such as 'Noah'."]
    last_name: Annotated[str, "The passenger's last name, such as 'Brown'."]
    dob: Annotated[str, "The passenger's date of birth as YYYY-MM-DD, such as '1990-01-01'."]


class Payment(TypedDict):
    """What one payment method pays."""

    payment_id: Annotated[str, "A payment method of the user's profile, 'gift_card_7815826' say."]
    amount: Annotated[float, "What it pays, in dollars."]


def airline_domain(database: Database, policy: str = "") -> Domain:
    """The airline domain over `database`, which must not be written from here on."""
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
        think: False,
        transfer_to_human_agents: False,
        update_reservation_baggages: True,
        update_reservation_flights: True,
        update_reservation_passengers: True,
    }
    tools = [make_tool(function, write=write) for function, write in writes.items()]
    return Domain("airline", policy, database, tools)


# --- reading --------------------------------------------------------------------------------------


def get_reservation_details(db: State, reservation_id: str) -> str:
    """Get the details of a reservation.

    Args:
        reservation_id: The reservation id, such as '8JX2WO'.
    """
    reservation = db.get("reservations", reservation_id)
    if reservation is None:
        raise ToolError("user not found")  # quirk: of the reservation, not of a user
    return json.dumps(reservation)


def get_user_details(db: State, user_id: str) -> str:
    """Get the details of a user, with the ids of their reservations.

    Args:
        user_id: The user id, such as 'sara_doe_496'.
    """
    return json.dumps(find_record(db, "users", user_id))


def list_all_airports(db: State) -> str:
    """List the three-letter code and the city of every airport."""
    return json.dumps(AIRPORTS)


def search_direct_flight(db: State, origin: str, destination: str, date: str) -> str:
    """Search for flights without a stop that can be booked on a day.

    Args:
        origin: The airport of departure, three letters, such as 'JFK'.
        destination: The airport of arrival, three letters, such as 'LAX'.
        date: The day of departure as YYYY-MM-DD, such as '2024-01-01'.
    """
    found = _departures(db, origin, date)
    return json.dumps([flight for flight in found if flight["destination"] == destination])


def search_onestop_flight(db: State, origin: str, destination: str, date: str) -> str:
    """Search for pairs of flights with one stop between them that can be booked on a day. The
    second leaves when the first has landed: on the same day, or on the next where the first lands
    on the next.

    Args:
        origin: The airport of departure, three letters, such as 'JFK'.
        destination: The airport of arrival, three letters, such as 'LAX'.
        date: The day of departure as YYYY-MM-DD, such as '2024-05-01'.
    """
    pairs = []
    for first in _departures(db, origin, date):
        landing = first["scheduled_arrival_time_est"]
        days = timedelta(days="+1" in landing)
        second_date = str(datetime.fromisoformat(date).date() + days)
        # Quirk: the second flight has to fly on its own date, but shows the seats and the prices
        # of the first one's.
        for second in _departures(db, first["destination"], date):
            flies = second_date in find_record(db, "flights", second["flight_number"])["dates"]
            # Compared as text, so 03:00:00+1 comes after 03:00:00 and before 03:30:00.
            in_time = landing <= second["scheduled_departure_time_est"]
            if second["destination"] == destination and flies and in_time:
                pairs.append([first | {"date": date}, second | {"date": second_date}])
    return json.dumps(pairs)


# --- writing --------------------------------------------------------------------------------------


def book_reservation(
    db: State, user_id: str, origin: str, destination: str, flight_type: FlightType, cabin: Cabin,
    flights: list[Flight], passengers: list[Passenger], payment_methods: list[Payment],
    total_baggages: int, nonfree_baggages: int, insurance: YesNo,
) -> str:  # fmt: skip
    """Book flights for a user. Give the details and get the user's explicit confirmation (yes)
    first. The payments must add up to the prices of the flights for each passenger, 30 dollars for
    each passenger if insured, and 50 dollars for each bag that is not free. A certificate is used
    up, whatever is left of it. Returns the reservation.

    Args:
        user_id: The user who books, such as 'sara_doe_496'.
        origin: The airport of departure, three letters, such as 'SFO'.
        destination: The airport where the journey goes, three letters, such as 'JFK'.
        flight_type: Whether they fly one way or return.
        cabin: The cabin class, the same on all flights.
        flights: Every flight of the journey, in order.
        passengers: Everyone who flies.
        payment_methods: What pays how much of the price.
        total_baggages: How many bags are checked, free or not.
        nonfree_baggages: How many of the bags are to be paid for.
        insurance: Whether travel insurance is bought.
    """
    find_record(db, "users", user_id)
    _check_choice("flight_type", flight_type, FlightType)
    _check_choice("cabin", cabin, Cabin)
    _check_choice("insurance", insurance, YesNo)
    booked = [_booked(db, flight, cabin, len(passengers)) for flight in flights]
    per_passenger = sum(flight["price"] for flight in booked)
    per_passenger += INSURANCE_PRICE if insurance == "yes" else 0
    total = per_passenger * len(passengers) + BAGGAGE_PRICE * nonfree_baggages
    user = db.edit("users", user_id)
    for payment in payment_methods:
        _pay(user["payment_methods"], payment)
    paid = sum(payment["amount"] for payment in payment_methods)
    if paid != total:
        raise ToolError(f"payment amount does not add up, total price is {total}, but paid {paid}")
    free = (number for number in _RESERVATION_IDS if not db.get("reservations", number))
    reservation_id = next(free, _RESERVATION_IDS[-1])  # quirk: a fourth booking replaces the third
    reservation = {
        "reservation_id": reservation_id, "user_id": user_id, "origin": origin,
        "destination": destination, "flight_type": flight_type, "cabin": cabin, "flights": booked,
        "passengers": _copies(passengers), "payment_history": _copies(payment_methods),
        "created_at": NOW, "total_baggages": total_baggages,
        "nonfree_baggages": nonfree_baggages, "insurance": insurance,
    }  # fmt: skip
    db.add("reservations", reservation_id, reservation)
    user["reservations"].append(reservation_id)
    return json.dumps(reservation)


def cancel_reservation(db: State, reservation_id: str) -> str:
    """Cancel a whole reservation, which refunds every payment. Give the details and get the user's
    explicit confirmation (yes) first. Returns the reservation after the cancellation.

    Args:
        reservation_id: The reservation id, such as 'ZFA04Y'.
    """
    find_record(db, "reservations", reservation_id)
    reservation = db.edit("reservations", reservation_id)
    # Quirk: the refund is noted, but a gift card does not get its money back here.
    history = reservation["payment_history"]
    history += [payment | {"amount": -payment["amount"]} for payment in history]
    reservation["status"] = "cancelled"
    return json.dumps(reservation)


def send_certificate(db: State, user_id: str, amount: float) -> str:
    """Give a user a travel certificate. This cannot be undone, so make sure that it is due.

    Args:
        user_id: The user who gets it, such as 'sara_doe_496'.
        amount: What the certificate is worth, in dollars.
    """
    find_record(db, "users", user_id)
    methods = db.edit("users", user_id)["payment_methods"]
    ids = (f"certificate_{number}" for number in count(_FIRST_CERTIFICATE))
    method_id = next(i for i in ids if i not in methods)
    methods[method_id] = {"source": "certificate", "amount": amount, "id": method_id}
    return f"Certificate {method_id} added to user {user_id} with amount {amount}."


def update_reservation_baggages(
    db: State, reservation_id: str, total_baggages: int, nonfree_baggages: int, payment_id: str
) -> str:
    """Change how many bags a reservation has. Give the details and get the user's explicit
    confirmation (yes) first. Each further bag that is not free costs 50 dollars; fewer bags bring
    no refund. Returns the reservation after the change.

    Args:
        reservation_id: The reservation id, such as 'ZFA04Y'.
        total_baggages: How many bags there are to be in all, free or not.
        nonfree_baggages: How many of them are paid for, those paid for before included.
        payment_id: What pays, a gift card or credit card of the profile: 'gift_card_7815826' say.
    """
    reservation = find_record(db, "reservations", reservation_id)
    further = max(0, nonfree_baggages - reservation["nonfree_baggages"])
    reservation = _charge(db, reservation, payment_id, BAGGAGE_PRICE * further)
    reservation["total_baggages"] = total_baggages
    reservation["nonfree_baggages"] = nonfree_baggages
    return json.dumps(reservation)


def update_reservation_flights(
    db: State, reservation_id: str, cabin: Cabin, flights: list[Flight], payment_id: str
) -> str:
    """Change the flights or the cabin of a reservation. Give the details and get the user's
    explicit confirmation (yes) first. The difference in price is paid or refunded. A flight that is
    kept in its cabin keeps its price. Returns the reservation after the change.

    Args:
        reservation_id: The reservation id, such as 'ZFA04Y'.
        cabin: The cabin class, the same on all flights.
        flights: Every flight of the journey after the change, in order, those that stay included.
        payment_id: What pays or is refunded, a gift card or credit card of the profile, such as
            'gift_card_7815826'.
    """
    reservation = find_record(db, "reservations", reservation_id)
    _check_choice("cabin", cabin, Cabin)
    # Quirk: the cabin is not written down, so it is still the old one that decides what is kept.
    old = reservation["flights"] if cabin == reservation["cabin"] else []
    passengers = len(reservation["passengers"])
    booked = [_kept(flight, old) or _booked(db, flight, cabin, passengers) for flight in flights]
    difference = sum(flight["price"] for flight in booked)
    difference -= sum(flight["price"] for flight in reservation["flights"])
    reservation = _charge(db, reservation, payment_id, difference * passengers)
    reservation["flights"] = booked
    return json.dumps(reservation)


def update_reservation_passengers(
    db: State, reservation_id: str, passengers: list[Passenger]
) -> str:
    """Replace the passengers of a reservation by as many others. Give the details and get the
    user's explicit confirmation (yes) first. Returns the reservation after the change.

    Args:
        reservation_id: The reservation id, such as 'ZFA04Y'.
        passengers: Everyone who flies after the change, those who stay included.
    """
    reservation = find_record(db, "reservations", reservation_id)
    if len(passengers) != len(reservation["passengers"]):
        raise ToolError("number of passengers does not match")
    reservation = db.edit("reservations", reservation_id)
    reservation["passengers"] = _copies(passengers)
    return json.dumps(reservation)


# --- shared by the tools --------------------------------------------------------------------------


def _check_choice(name: str, value: str, choices: Any) -> None:
    if value not in get_args(choices):
        raise ToolError(f"argument {name!r} should be one of {', '.join(get_args(choices))}")


def _copies(items: Any) -> list[Record]:
    """Copies of an argument's plain objects: the caller keeps its own."""
    return [dict(item) for item in items]


def _departures(db: State, origin: str, date: str) -> Iterator[Record]:
    """The flights that can be booked from an airport on a day, with that day's seats and prices."""
    for flight in db.table("flights").values():
        day = flight["dates"].get(date)
        if flight["origin"] == origin and day is not None and day["status"] == "available":
            yield {key: value for key, value in flight.items() if key != "dates"} | day


def _booked(db: State, flight: Flight, cabin: str, passengers: int) -> Record:
    """The flight as a reservation has it, at today's price. Raises ToolError if it is not free."""
    number, date = flight["flight_number"], flight["date"]
    record = db.get("flights", number)
    if record is None:
        raise ToolError(f"flight {number} not found")
    day = record["dates"].get(date)
    if day is None:
        raise ToolError(f"flight {number} not found on date {date}")
    if day["status"] != "available":
        raise ToolError(f"flight {number} not available on date {date}")
    if day["available_seats"][cabin] < passengers:
        raise ToolError(f"not enough seats on flight {number}")
    return _segment(flight, day["prices"][cabin], record)


def _kept(flight: Flight, old: list[Record]) -> Record | None:
    """The flight at the price it was booked for, if it is among the old ones."""
    for before in old:
        if (before["flight_number"], before["date"]) == (flight["flight_number"], flight["date"]):
            return _segment(flight, before["price"], before)
    return None


def _segment(flight: Flight, price: float, route: Record) -> Record:
    ends = {"origin": route["origin"], "destination": route["destination"]}
    return {**flight, "price": price, **ends}


def _pay(methods: dict[str, Record], payment: Payment) -> None:
    """Takes a payment for a booking from the user's own payment methods. Raises ToolError."""
    method_id, amount = payment["payment_id"], payment["amount"]
    if method_id not in methods:
        raise ToolError(f"payment method {method_id} not found")
    method = methods[method_id]
    if method["source"] == "credit_card":
        return
    if method["amount"] < amount:
        raise ToolError(f"not enough balance in payment method {method_id}")
    if method["source"] == "certificate":
        del methods[method_id]
    else:
        method["amount"] -= amount


def _charge(db: State, reservation: Record, method_id: str, amount: float) -> Record:
    """The reservation to write in, once the dollars are paid, or refunded if negative."""
    method = find_payment_method(db, reservation["user_id"], method_id)
    if method["source"] == "certificate":
        raise ToolError("certificate cannot be used to update reservation")
    if method["source"] == "gift_card" and method["amount"] < amount:
        raise ToolError("gift card balance is not enough")
    reservation = db.edit("reservations", reservation["reservation_id"])
    if amount != 0:
        reservation["payment_history"].append({"payment_id": method_id, "amount": amount})
        if method["source"] == "gift_card":
            card = db.edit("users", reservation["user_id"])["payment_methods"][method_id]
            card["amount"] -= amount
    return reservation
