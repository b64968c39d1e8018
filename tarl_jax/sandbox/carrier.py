"""The embedded airline: a synthetic airline database made from a seed.

Tables, fields and key order follow tau-bench's airline domain, and so do the calendar (May 2024)
and the present (`airline.NOW`): flights before it have landed or were cancelled, those of its day
are in any state, later ones can be booked. Ids of payment methods have two digits.

Six airports lie on a ring. To the next airport of either side one flies in the morning, to the one
after it later in the day, and to the opposite one with a stop. Most reservations lie ahead and are
of one flight, so that an episode about them is short.
"""

from __future__ import annotations

import random
from datetime import date, datetime, timedelta
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from tarl_jax.config import InputError
from tarl_jax.sandbox.airline import AIRPORTS, BAGGAGE_PRICE, INSURANCE_PRICE, NOW
from tarl_jax.sandbox.domain import Database, Record
from tarl_jax.sandbox.shop import ADDRESSES, FIRST_NAMES, LAST_NAMES

POLICY = Path(__file__).with_name("carrier_policy.md")  # the rules that the agent must follow
SERVED = list(AIRPORTS)[:6]
DAYS = [date(2024, 5, day) for day in range(1, 31)]
PRICES = {"basic_economy": (50, 100), "economy": (100, 200), "business": (200, 500)}
# Bags that each passenger checks for nothing, by cabin in the order of PRICES.
FREE_BAGS = {"regular": (0, 1, 2), "silver": (1, 2, 3), "gold": (2, 3, 3)}
_PRESENT = datetime.fromisoformat(NOW)
_AHEAD = [day for day in DAYS if day > _PRESENT.date()]


def make_carrier(
    seed: int = 0, num_users: int = 30, branch: int = 0, reservations_per_user: int = 2
) -> Database:
    """The database {"flights", "reservations", "users"}, a pure function of the arguments.

    branch: airlines of one seed have the same flights; each branch has its own users.
    Raises ValueError where there are not as many names as users.
    """
    limit = len(FIRST_NAMES) * len(LAST_NAMES)
    if not 1 <= num_users <= limit:
        raise InputError(f"num_users = {num_users}: must be between 1 and {limit}")
    flights = _make_flights(random.Random(f"flights-{seed}"))
    rng = random.Random(f"travellers-{seed}-{branch}")
    users: dict[str, Record] = {}
    reservations: dict[str, Record] = {}
    for first, last in rng.sample([(f, n) for f in FIRST_NAMES for n in LAST_NAMES], num_users):
        user = _make_user(rng, first, last)
        user_id = f"{first.lower()}_{last.lower()}_{rng.randrange(10, 100)}"
        while len(user["reservations"]) < reservations_per_user:
            # A digit keeps it apart from the ids of bookings to come.
            reservation_id = "".join(rng.choices(ascii_uppercase, k=5)) + str(rng.randrange(10))
            if reservation_id not in reservations:
                made = _make_reservation(rng, reservation_id, user_id, user, flights)
                reservations[reservation_id] = made
                user["reservations"].append(reservation_id)
        users[user_id] = user
    return {"flights": flights, "reservations": reservations, "users": users}


# --- flights --------------------------------------------------------------------------------------


def _make_flights(rng: random.Random) -> dict[str, Record]:
    flights: dict[str, Record] = {}
    half_hour = timedelta(minutes=30)
    for place, origin in enumerate(SERVED):
        for step in (-2, -1, 1, 2):
            number = f"HAT{len(flights) + 1:03}"
            if abs(step) == 1:  # from 06:00 to 12:30 at the latest
                leaves = half_hour * rng.randrange(12, 20)
                lands = leaves + half_hour * rng.randrange(3, 7)
            else:  # from 13:00 on, to the next day at times
                leaves = half_hour * rng.randrange(26, 46)
                lands = leaves + half_hour * rng.randrange(3, 12)
            flights[number] = {
                "flight_number": number,
                "origin": origin,
                "destination": SERVED[(place + step) % len(SERVED)],
                "scheduled_departure_time_est": _clock(leaves),
                "scheduled_arrival_time_est": _clock(lands),
                "dates": {str(day): _make_day(rng, day, leaves, lands) for day in DAYS},
            }
    return flights


def _make_day(rng: random.Random, day: date, leaves: timedelta, lands: timedelta) -> Record:
    midnight = datetime.combine(day, datetime.min.time())
    late = 90 if rng.random() < 0.2 else 0
    departure, arrival = (
        midnight + at + timedelta(minutes=late + rng.randrange(20)) for at in (leaves, lands)
    )
    if day > _PRESENT.date():
        return {
            "status": "available",
            "available_seats": {cabin: max(0, rng.randrange(-3, 21)) for cabin in PRICES},
            "prices": {cabin: rng.randrange(*span) for cabin, span in PRICES.items()},
        }
    if departure > _PRESENT:
        return {"status": "delayed" if late else "on time",
                "estimated_departure_time_est": departure.isoformat(),
                "estimated_arrival_time_est": arrival.isoformat()}
    if rng.random() < 0.1:
        return {"status": "cancelled"}
    actual = {"actual_departure_time_est": departure.isoformat()}
    if arrival > _PRESENT:
        return {"status": "flying", **actual, "estimated_arrival_time_est": arrival.isoformat()}
    return {"status": "landed", **actual, "actual_arrival_time_est": arrival.isoformat()}


def _clock(time: timedelta) -> str:
    """HH:MM:SS, with "+1" after midnight."""
    return f"{datetime.min + time:%H:%M:%S}{'+1' * time.days}"


# --- users and reservations -----------------------------------------------------------------------


def _make_user(rng: random.Random, first: str, last: str) -> Record:
    street, city, state, zip_code = rng.choice(ADDRESSES)
    card = f"credit_card_{rng.randrange(10, 100)}"
    methods: dict[str, Any] = {
        card: {"source": "credit_card", "brand": "visa", "last_four": f"{rng.randrange(10)}000",
               "id": card},
    }
    for source, share, amounts in (
        ("gift_card", 0.5, (40, 150, 400)), ("certificate", 0.3, (100, 250, 500))
    ):
        if rng.random() < share:
            method = f"{source}_{rng.randrange(10, 100)}"
            methods[method] = {"source": source, "amount": rng.choice(amounts), "id": method}
    return {
        "name": {"first_name": first, "last_name": last},
        "address": {"address1": street, "address2": "", "city": city, "country": "USA",
                    "state": state, "zip": zip_code},
        "email": f"{first.lower()}.{last.lower()}@mail.com",
        "dob": birthday(rng),
        "payment_methods": methods,
        "saved_passengers": [
            {"first_name": rng.choice(FIRST_NAMES), "last_name": last, "dob": birthday(rng)}
            for _ in range(rng.choice((0, 0, 1)))
        ],
        "membership": rng.choice(list(FREE_BAGS)),
        "reservations": [],
    }


def birthday(rng: random.Random) -> str:
    """A day of birth, YYYY-MM-DD."""
    return str(date(1950, 1, 1) + timedelta(days=rng.randrange(50 * 365)))


def _make_reservation(
    rng: random.Random, reservation_id: str, user_id: str, user: Record, flights: dict[str, Record]
) -> Record:
    cabin = rng.choice(list(PRICES))
    place, step = rng.randrange(len(SERVED)), rng.choices((-2, -1, 1, 2, 3), (6, 6, 6, 6, 1))[0]
    origin, destination = SERVED[place], SERVED[(place + step) % len(SERVED)]
    flight_type = rng.choices(("one_way", "round_trip"), (4, 1))[0]
    out, back = sorted(rng.sample(_AHEAD if rng.random() < 0.85 else DAYS, 2))
    booked = _make_way(rng, flights, origin, destination, out, cabin)
    if flight_type == "round_trip":
        booked += _make_way(rng, flights, destination, origin, back, cabin)
    passengers = [{**user["name"], "dob": user["dob"]}]
    passengers += [dict(p) for p in user["saved_passengers"] if rng.random() < 0.6]
    free = FREE_BAGS[user["membership"]][list(PRICES).index(cabin)] * len(passengers)
    bags = rng.randrange(free + 2)
    insurance = rng.choice(("yes", "no"))
    each = sum(f["price"] for f in booked) + (INSURANCE_PRICE if insurance == "yes" else 0)
    nonfree = max(0, bags - free)
    payers = [m for m in user["payment_methods"] if not m.startswith("certificate")]
    latest = min(_PRESENT, datetime.combine(out, datetime.min.time()))
    minutes = rng.randrange(60, 1_400 if rng.random() < 0.2 else 14_400)
    return {
        "reservation_id": reservation_id,
        "user_id": user_id,
        "origin": origin,
        "destination": destination,
        "flight_type": flight_type,
        "cabin": cabin,
        "flights": booked,
        "passengers": passengers,
        "payment_history": [{
            "payment_id": rng.choice(payers),
            "amount": each * len(passengers) + BAGGAGE_PRICE * nonfree,
        }],
        "created_at": (latest - timedelta(minutes=minutes)).isoformat(),
        "total_baggages": bags,
        "nonfree_baggages": nonfree,
        "insurance": insurance,
    }


def _make_way(
    rng: random.Random,
    flights: dict[str, Record],
    origin: str,
    destination: str,
    day: date,
    cabin: str,
) -> list[Record]:
    """The flight there, or two with a stop, at prices of the time of booking."""
    by_route = {(f["origin"], f["destination"]): f for f in flights.values()}
    if (origin, destination) in by_route:
        legs = [by_route[origin, destination]]
    else:
        stop = SERVED[(SERVED.index(origin) + rng.choice((-1, 1))) % len(SERVED)]
        legs = [by_route[origin, stop], by_route[stop, destination]]
    return [
        {"origin": leg["origin"], "destination": leg["destination"],
         "flight_number": leg["flight_number"], "date": str(day),
         "price": rng.randrange(*PRICES[cabin])}
        for leg in legs
    ]
